"""What the indices of an axis are made of, and when two axes have the same ones.

An axis is a *term*: an atom, of which nothing is known but its size; a product, whose last factor counts fastest, as a
reshape makes it; or a sum, one part after another, as a concatenation makes it. Operations say that terms are equal.
`unify` makes them so: an atom becomes whatever it meets, and is cut where it meets something finer.

    a projection's [512] meets [8, 64] in a reshape:  the atom of 512 becomes heads * size
    a joint projection's [96] is cut in three:        the atom of 96 becomes queries + keys + values
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from planish.ir.types import Dim, as_dim, floor_div, same_dim


class Mismatch(Exception):
    """Two terms that cannot be made equal; the message says why, for the sentence of a refusal."""


class Atom:
    """Indices of which nothing is known but how many there are, until it meets a term and becomes it."""

    __slots__ = ("bound", "size")

    def __init__(self, size: Dim) -> None:
        self.size = size
        self.bound: Term | None = None

    def __repr__(self) -> str:
        return f"Atom({self.size})" if self.bound is None else repr(self.bound)


@dataclass(frozen=True, eq=False)
class Product:
    """Pairs, triples, ... of indices, the last one counting fastest."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Sum:
    """The indices of one part, then those of the next."""

    parts: tuple[Term, ...]


Term: TypeAlias = "Atom | Product | Sum"
UNIT = Product(())
"""The term of an axis of size 1."""


def product(terms: Iterable[Term]) -> Term:
    """The product without units and without products in it."""
    factors: list[Term] = []
    for term in terms:
        found = normal(term)
        factors += found.factors if isinstance(found, Product) else [found]
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def union(terms: Iterable[Term]) -> Term:
    """The sum without empty parts and without sums in it."""
    parts: list[Term] = []
    for term in terms:
        found = normal(term)
        parts += found.parts if isinstance(found, Sum) else [found] if not same_dim(size(found), 0) else []
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


def normal(term: Term) -> Term:
    """The term with every bound atom replaced by what it has become."""
    if isinstance(term, Product):
        return product(term.factors)
    if isinstance(term, Sum):
        return union(term.parts)
    if term.bound is None:
        return UNIT if same_dim(term.size, 1) else term
    found = normal(term.bound)
    term.bound = found
    return found


def size(term: Term) -> Dim:
    """How many indices there are."""
    if isinstance(term, Atom):
        return term.size
    total: Dim = 1 if isinstance(term, Product) else 0
    for inner in term.factors if isinstance(term, Product) else term.parts:
        total = as_dim(total * size(inner)) if isinstance(term, Product) else as_dim(total + size(inner))
    return total


def atoms(term: Term) -> Iterator[Atom]:
    """The atoms of a term, in order; one that occurs twice comes twice."""
    found = normal(term)
    if isinstance(found, Atom):
        yield found
        return
    for inner in found.factors if isinstance(found, Product) else found.parts:
        yield from atoms(inner)


def unify(a: Term, b: Term) -> None:
    """Make two terms equal.

    Raises:
        Mismatch: when they cannot be; atoms that were cut on the way stay cut, which says nothing untrue about them.
    """
    a, b = normal(a), normal(b)
    if a is b:
        return
    if not same_dim(size(a), size(b)):
        raise Mismatch(f"{size(a)} indices are not {size(b)}")
    if isinstance(a, Atom) or isinstance(b, Atom):
        atom, other = (a, b) if isinstance(a, Atom) else (b, a)
        assert isinstance(atom, Atom)
        if any(inner is atom for inner in atoms(other)):
            raise Mismatch(f"an axis of {atom.size} would be a part of itself")
        atom.bound = other
    elif isinstance(a, Product) and isinstance(b, Product):
        _factor_by_factor([*a.factors], [*b.factors])
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _part_by_part([*a.parts], [*b.parts])
    else:
        whole, parts = (a, b) if isinstance(b, Sum) else (b, a)
        assert isinstance(whole, Product) and isinstance(parts, Sum)
        _part_by_part([whole], [*parts.parts])


def _factor_by_factor(a: list[Term], b: list[Term]) -> None:
    # From the end first: sizes that are no numbers stand in front, where a batch and a sequence were joined.
    while a and b and (same_dim(size(a[-1]), size(b[-1])) or _cut_last(a, b) or _cut_last(b, a)):
        unify(a.pop(), b.pop())
    while a and b:
        one, other = size(a[0]), size(b[0])
        if same_dim(one, other):
            unify(a.pop(0), b.pop(0))
        elif (len(a) == 1 and isinstance(normal(a[0]), Atom)) or (len(b) == 1 and isinstance(normal(b[0]), Atom)):
            # One axis for all that is left of the other side.
            return unify(product(a), product(b))
        elif not isinstance(one, int) or not isinstance(other, int):
            raise Mismatch(f"axes of {one} and {other} do not count alike")
        elif one > other:
            a[:1] = _split(a[0], other)
        else:
            b[:1] = _split(b[0], one)


def _cut_last(a: list[Term], b: list[Term]) -> bool:
    """Whether the last of `a`, whose size is no number, is a multiple of the last of `b`; it is cut accordingly."""
    last, total, inner = normal(a[-1]), size(a[-1]), size(b[-1])
    if isinstance(total, int) or not isinstance(last, Atom) or not isinstance(inner, int):
        return False
    outer = floor_div(total, inner)
    if not same_dim(as_dim(outer * inner), total):
        return False
    last.bound = Product((Atom(outer), Atom(inner)))
    a[-1:] = last.bound.factors
    return True


def _split(term: Term, outer: int) -> list[Term]:
    """The term as a product of `outer` and the rest."""
    total = size(term)
    assert isinstance(total, int)
    if total % outer:
        raise Mismatch(f"an axis of {total} is not cut into {outer} equal parts")
    term = normal(term)
    if isinstance(term, Atom):
        term.bound = Product((Atom(outer), Atom(total // outer)))
        return list(term.bound.factors)
    if isinstance(term, Sum):
        # Parts one after another are pairs when each of them is a multiple of the inner indices.
        inner, fronts = Atom(total // outer), list[Term]()
        for part in term.parts:
            count = size(part)
            if not isinstance(count, int) or count % (total // outer):
                raise Mismatch(f"a part of {count} is not cut into rows of {total // outer}")
            fronts.append(Atom(count // (total // outer)))
            unify(part, Product((fronts[-1], inner)))
        return [union(fronts), inner]
    raise AssertionError("products hold no products")


def _part_by_part(a: list[Term], b: list[Term]) -> None:
    while a and b:
        one, other = size(a[0]), size(b[0])
        if same_dim(one, other):
            unify(a.pop(0), b.pop(0))
        elif not isinstance(one, int) or not isinstance(other, int):
            raise Mismatch(f"parts of {one} and {other} do not begin alike")
        elif one > other:
            a[:1] = _cut(a[0], other)
        else:
            b[:1] = _cut(b[0], one)


def _cut(term: Term, first: int) -> list[Term]:
    """The term as a sum of its first indices and the rest."""
    term, total = normal(term), size(term)
    assert isinstance(total, int)
    if isinstance(term, Atom):
        term.bound = Sum((Atom(first), Atom(total - first)))
        return list(term.bound.parts)
    if isinstance(term, Sum):
        return list(term.parts)
    lead, rest = term.factors[0], term.factors[1:]
    row, lead_size = size(Product(rest)), size(lead)
    if not isinstance(row, int) or not isinstance(lead_size, int) or first % row:
        raise Mismatch(f"a part of {first} is not cut along rows of {row}")
    return [product((piece, *rest)) for piece in _cut(lead, first // row)]
