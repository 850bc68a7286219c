"""Laws of ATen calls that mention operands in another order, or more than once, and of powers."""

from __future__ import annotations

import pytest
import torch

from planish.ir import TensorType
from planish.ir.ops import Slot, aten
from planish.ir.ops.aten import Aten
from planish.ir.spaces.action import act
from planish.ir.spaces.laws import Family, Place
from planish.ir.spaces.terms import atoms
from planish.testing.acting import draw, solutions

X, OTHER, Y = Place("operand", 0), Place("operand", 1), Place("result", 0)
CALLS = {
    "parts in another order": (aten("cat.default", (Slot(1), Slot(0)), -1), [(3, 4), (3, 5)]),
    "a part twice": (aten("cat.default", (Slot(0), Slot(1), Slot(0)), -1), [(3, 4), (3, 5)]),
    "divided by the first": (aten("div.Tensor", Slot(1), Slot(0)), [(3, 4), (3, 4)]),
    "a square": (aten("mul.Tensor", Slot(0), Slot(0)), [(3, 4)]),
    "twice the same": (aten("add.Tensor", Slot(0), Slot(0)), [(3, 4)]),
    "a product with itself": (aten("matmul.default", Slot(0), Slot(0)), [(4, 4)]),
    "the second times the first": (aten("matmul.default", Slot(1), Slot(0)), [(3, 4), (5, 3)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_stated_goes_through_however_operands_are_mentioned(name: str) -> None:
    op, shapes = CALLS[name]
    generator = torch.Generator().manual_seed(len(name))
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    indexing = op.indexing(*(TensorType(torch.float64, shape) for shape in shapes))
    assert indexing is not None and indexing.laws
    (y,) = op.evaluate(*operands)
    of_y = indexing.results[0]
    indices = {atom for law in indexing.laws for atom in atoms(law.term)}
    for atom in indices:
        laws = [law for law in indexing.laws if atom in atoms(law.term)]
        family, count = min(law.family for law in laws), int(atom.size)  # type: ignore[call-overload]
        sides = {place: side for law in laws for place, side in law.places.items()}
        matrix = draw(family, count, generator)
        moved = [
            act(o, indexing.operands[n] or (), atom, matrix, sides.get(Place("operand", n), 1) < 0)
            for n, o in enumerate(operands)
        ]
        want = act(y, of_y, atom, matrix, sides.get(Y, 1) < 0)
        assert torch.allclose(op.evaluate(*moved)[0], want, rtol=1e-12, atol=1e-12), (atom, family)
        for equations, modulus in (
            ([e for law in laws for e in law.scales], 0),
            ([e for law in laws for e in law.signs], 2),
        ):
            for exponents in solutions(equations, [*sides], modulus):
                base = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)
                base = (base - 1).sign() if modulus else base
                of = [base ** exponents.get(Place("operand", n), 0) for n in range(len(operands))]
                moved = [act(o, indexing.operands[n] or (), atom, of[n]) for n, o in enumerate(operands)]
                want = act(y, of_y, atom, base ** exponents.get(Y, 0))
                assert torch.allclose(op.evaluate(*moved)[0], want, rtol=1e-12, atol=1e-12), exponents


def test_mentions_of_one_operand_meet() -> None:
    """A square takes no more than permutations; a product with itself, on both sides of which the same indices are, no more
    than rotations."""
    square = aten("mul.Tensor", Slot(0), Slot(0)).indexing(TensorType(torch.float64, (3, 4)))
    assert square is not None and {law.family for law in square.laws} == {Family.PERMUTATION}
    assert {tuple(law.scales[0].items()) for law in square.laws} == {((X, 2), (Y, -1))}
    product = aten("matmul.default", Slot(0), Slot(0)).indexing(TensorType(torch.float64, (4, 4)))
    assert product is not None and min(law.family for law in product.laws) == Family.ORTHOGONAL


def test_mentions_whose_indices_differ_state_nothing() -> None:
    """A tensor joined with itself on an axis that would have to be twice itself."""
    op = aten("bmm.default", Slot(0), Slot(0))
    assert op.indexing(TensorType(torch.float64, (2, 4, 4))) is not None
    assert aten("cumsum.default", Slot(0), 1).indexing(TensorType(torch.float64, (2, 4))) is None


@pytest.mark.parametrize("exponent", [1, 2, 3, -1, -2, 0.5, 1.5, -0.5, 2.0])
def test_powers_of_scales_and_signs(exponent: float) -> None:
    op = aten("pow.Tensor_Scalar", Slot(0), exponent)
    (law,) = _laws(op)
    x = torch.tensor([0.75, 2.0, 3.0, 5.0], dtype=torch.float64)
    (equation,) = law.scales
    root = 4.0
    moved = op.evaluate(x * root ** -equation[Y])[0]
    assert torch.allclose(moved, op.evaluate(x)[0] * root ** equation[X], rtol=1e-14)
    if float(exponent).is_integer():
        (parity,) = law.signs
        assert torch.equal(op.evaluate(-x)[0], op.evaluate(x)[0] * (-1.0) ** parity.get(X, 0))


@pytest.mark.parametrize("exponent", [0, 0.3])
def test_other_powers_let_no_scale_through(exponent: float) -> None:
    (law,) = _laws(aten("pow.Tensor_Scalar", Slot(0), exponent))
    assert law.scales == ({X: 1}, {Y: 1}) and law.signs == law.scales


def _laws(op: Aten):  # type: ignore[no-untyped-def]
    indexing = op.indexing(TensorType(torch.float64, (4,)))
    assert indexing is not None
    return indexing.laws


def test_a_slice_by_keywords_is_read_as_what_it_is() -> None:
    x = TensorType(torch.float64, (3, 9))
    by_place = aten("slice.Tensor", Slot(0), 1, 2, 7)
    by_name = aten("slice.Tensor", Slot(0), dim=1, start=2, end=7)
    for op in (by_place, by_name):
        indexing = op.indexing(x)
        assert indexing is not None and indexing.operands[0] is not None
        assert [part.size for part in atoms(indexing.operands[0][1])] == [2, 5, 2]
