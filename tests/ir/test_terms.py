"""Terms of axes: equal ones count the same indices in the same order, whichever way they were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir.spaces.terms import UNIT, Atom, Mismatch, Product, Sum, Term, atoms, normal, product, size, unify, union
from planish.ir.types import symbol


def sizes(term: Term) -> list[object]:
    return [atom.size for atom in atoms(term)]


def spelt(term: Term) -> object:
    """The structure of a term, each atom by its identity."""
    term = normal(term)
    if isinstance(term, Atom):
        return id(term)
    kind = "product" if isinstance(term, Product) else "sum"
    return (kind, *map(spelt, term.factors if isinstance(term, Product) else term.parts))


def indices(term: Term) -> list[tuple[object, ...]]:
    """What each index of a term is: which index of which atoms, in the order in which the term counts them."""
    term = normal(term)
    if isinstance(term, Atom):
        assert isinstance(term.size, int)
        return [((id(term), n),) for n in range(term.size)]
    if isinstance(term, Sum):
        return [((number, *index)) for number, part in enumerate(term.parts) for index in indices(part)]
    found: list[tuple[object, ...]] = [()]
    for factor in term.factors:
        found = [(*outer, *inner) for outer in found for inner in indices(factor)]
    return found


@st.composite
def terms(draw: st.DrawFn, depth: int = 3) -> Term:
    kind = draw(st.sampled_from(["atom", "product", "sum"])) if depth else "atom"
    if kind == "atom":
        return Atom(draw(st.integers(1, 4)))
    inner = draw(st.lists(terms(depth=depth - 1), min_size=1, max_size=3))
    return product(inner) if kind == "product" else union(inner)


@given(st.data())
def test_an_axis_takes_the_structure_it_meets(data: st.DataObject) -> None:
    fine = data.draw(terms())
    axis = Atom(size(fine))
    unify(axis, fine)
    assert spelt(axis) == spelt(fine) and indices(axis) == indices(fine)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_cuts_of_one_axis_on_both_sides_meet(cuts: list[int], data: st.DataObject) -> None:
    """One reshape joins neighbours on one side, another on the other; they count alike."""
    fine = [Atom(c) for c in cuts]

    def joined() -> Term:
        ends = sorted({len(fine), *data.draw(st.sets(st.integers(1, len(fine))))})
        return Product(tuple(Atom(size(Product(tuple(fine[a:b])))) for a, b in zip([0, *ends], ends)))

    one, other = joined(), joined()
    unify(one, other)
    unify(one, Product(tuple(fine)))
    assert indices(one) == indices(other) == indices(Product(tuple(fine)))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(1, 3))
def test_parts_of_rows_are_rows_of_parts(cuts: list[int], row: int) -> None:
    """A concatenation of whole rows meets the reshape into rows."""
    parts = [Atom(c * row) for c in cuts]
    rows, inner = Atom(sum(cuts)), Atom(row)
    unify(union(parts), Product((rows, inner)))
    for count, part in zip(cuts, parts):
        assert size(part) == count * row and (row == 1 or list(atoms(part))[-1] is normal(inner))


def test_sizes_that_are_no_numbers_stand_on_either_side() -> None:
    batch, tokens = Atom(symbol("B")), Atom(symbol("S"))
    whole, heads, head = Atom(12), Atom(3), Atom(4)
    unify(Product((batch, tokens, whole)), Product((Atom(symbol("B")), Atom(symbol("S")), heads, head)))
    assert spelt(whole) == spelt(Product((heads, head)))
    unify(Product((Atom(symbol("S")), Atom(8))), Product((Atom(symbol("S")), Atom(2), Atom(4))))


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (Atom(4), Atom(5), "4 indices are not 5"),
        (Product((Atom(4), Atom(6))), Product((Atom(3), Atom(8))), "an axis of 4 is not cut into 3 equal parts"),
        (Sum((Atom(2), Atom(4))), Product((Atom(2), Atom(3))), "a part of 2 is not cut along rows of 3"),
        (Product((Atom(symbol("S")), Atom(4))), Product((Atom(4), Atom(symbol("S")))), "do not count alike"),
    ],
)  # fmt: skip
def test_what_counts_differently_does_not_meet(one: Term, other: Term, why: str) -> None:
    with pytest.raises(Mismatch, match=why):
        unify(one, other)


def test_no_axis_is_a_part_of_itself() -> None:
    axis = Atom(symbol("S"))
    with pytest.raises(Mismatch):
        unify(axis, Product((axis, Atom(2))))
    unify(axis, Product((axis, Atom(1))))
    assert normal(Atom(1)) is UNIT
