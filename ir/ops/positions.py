"""Positions of tokens, and the rotary embedding that reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from planish.ir.axes import AxisRule, AxisTie, leading_ties
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float
from planish.ir.spaces.laws import Indexing, Law, Place, any_of, elementwise, fresh, linear, operand, result
from planish.ir.spaces.narrowing import Cut, Narrowed
from planish.ir.spaces.terms import Atom, Product, union
from planish.ir.types import Dim, TensorType, as_dim, same_dim


@dataclass(frozen=True)
class Positions(Op):
    """Position of each token of each row, i64 [batch, length]: a source of the sequence axis.

    Without operands token i is at position i. `padding` (i64 or bool [batch, length], nonzero = a real token) counts
    real tokens only: the n-th real token of a row is at n - 1, and padding gets `padding_value`. `start` (i64 [batch])
    is added to the positions of real tokens.
    """

    name: ClassVar[str] = "positions"
    operand_names: ClassVar[tuple[str, ...]] = ("start?", "padding?")
    batch: Dim
    length: Dim
    padding_value: int = 0

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        start, padding = operands
        result = TensorType(torch.int64, (self.batch, self.length))
        self.expect(
            start is None or start == TensorType(torch.int64, (self.batch,)), f"start must be i64[{self.batch}]"
        )
        self.expect(
            padding is None or (padding.dtype in (torch.int64, torch.bool) and padding.shape == result.shape),
            f"padding must be i64 or bool of shape {result.shape}, got {padding}",
        )
        return (result,)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        start, padding = operands
        offset = torch.zeros(1, 1, dtype=torch.int64) if start is None else start.unsqueeze(1)
        if padding is None:
            return ((torch.arange(self.length) + offset).expand(self.batch, self.length).contiguous(),)
        real = padding != 0
        counted = real.to(torch.int64).cumsum(1) - 1 + offset
        return (torch.where(real, counted, torch.full_like(counted, self.padding_value)),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        return AxisRule(tuple(AxisTie(n, 0, 0, 0) for n, o in enumerate(operands) if o is not None))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        start, padding = operands
        row, length = fresh(self.batch, self.length)
        places = [operand(n) for n, o in enumerate(operands) if o is not None]
        terms = (None if start is None else (row,), None if padding is None else (row, length))
        return Indexing(terms, ((row, length),), (elementwise(row, [*places, result()]),))

    def narrowed(self, cut: Cut) -> Narrowed:
        return Narrowed(replace(self, batch=cut.results[0].shape[0]))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        batch, length = choose.integer(1, 4), choose.integer(1, 9)
        start = TensorType(torch.int64, (batch,)) if choose.boolean() else None
        padding = TensorType(choose.choice([torch.bool, torch.int64]), (batch, length)) if choose.boolean() else None
        return Sample(cls(batch, length, choose.choice([0, 1, -1])), (start, padding))


ROPE_STYLES = ("half", "interleaved")


@dataclass(frozen=True)
class Rope(Op):
    """Rotary position embedding of x [batch, length, heads, size] at positions i64 [batch, length].

    The first 2 * len(inv_freq) elements of the last axis are rotated by the angle position * inv_freq[j], computed in
    at least float32; the rest passes through. Pair j is (j, j + len(inv_freq)) in style "half" and (2j, 2j + 1) in
    style "interleaved". Cosine and sine are multiplied by `scale`.
    """

    name: ClassVar[str] = "rope"
    operand_names: ClassVar[tuple[str, ...]] = ("x", "positions", "inv_freq")
    style: str = "half"
    scale: float = 1.0

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        x, positions, inv_freq = operands
        assert x is not None and positions is not None and inv_freq is not None
        self.expect(self.style in ROPE_STYLES, f"the style must be one of {ROPE_STYLES}, got {self.style!r}")
        self.expect(
            x.rank == 4 and x.dtype.is_floating_point, f"x must be a float [batch, length, heads, size], got {x}"
        )
        self.expect(
            positions == TensorType(torch.int64, x.shape[:2]),
            f"positions {positions} do not fit {x}; they are i64 [batch, length]",
        )
        self.expect(
            inv_freq.rank == 1 and inv_freq.dtype.is_floating_point, f"inv_freq must be a float vector, got {inv_freq}"
        )
        pairs, size = inv_freq.shape[0], x.shape[3]
        fits = not isinstance(pairs, int) or not isinstance(size, int) or 2 * pairs <= size
        self.expect(fits, f"{pairs} frequencies rotate more than the {size} elements of a head")
        return (x,)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x, positions, inv_freq = operands
        assert x is not None and positions is not None and inv_freq is not None
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        angle = (positions.to(compute).unsqueeze(-1) * inv_freq.to(compute)).unsqueeze(2)
        # Reference models round the cosine and sine to the dtype of x before rotating.
        cos, sin = (angle.cos() * self.scale).to(x.dtype), (angle.sin() * self.scale).to(x.dtype)
        pairs = inv_freq.shape[0]
        turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
        if self.style == "half":
            a, b = turned[..., :pairs], turned[..., pairs:]
            rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        return (torch.cat([rotated, rest], -1),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        return AxisRule((*leading_ties(0, 3), *leading_ties(1, 2)))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        """The rotated elements are pairs of halves; a frequency belongs to both, so pairs may change places with it."""
        x, _, frequencies = operands
        assert x is not None and frequencies is not None
        row, length, heads, pairs = fresh(*x.shape[:3], frequencies.shape[0])
        two, rest = fresh(2, as_dim(x.shape[3] - 2 * frequencies.shape[0]))
        turned = Product((two, pairs) if self.style == "half" else (pairs, two))
        size = union((turned, rest))
        places = [operand(0), result()]

        def turning(term: Atom, other: Place) -> Law:
            """What goes through: the same scale of x and of the result, and none of what makes the angle."""
            equations = ({operand(0): 1, result(): -1}, {other: 1})
            return elementwise(term, [*places, other], equations, equations, vanishing=any_of(operand(0)))

        laws = [linear(heads, *places), turning(pairs, operand(2)), *(turning(t, operand(1)) for t in (row, length))]
        if not same_dim(rest.size, 0):
            laws.append(linear(rest, *places))
        shape = (row, length, heads, size)
        return Indexing((shape, (row, length), (pairs,)), (shape,), tuple(laws))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype, pairs = choose_float(choose), choose.integer(1, 4)
        batch, length, heads = choose.integer(1, 3), choose.integer(1, 5), choose.integer(1, 3)
        x = TensorType(dtype, (batch, length, heads, 2 * pairs + choose.integer(0, 3)))
        op = cls(choose.choice(list(ROPE_STYLES)), choose.choice([1.0, 0.5]))
        return Sample(op, (x, TensorType(torch.int64, (batch, length)), TensorType(torch.float32, (pairs,))))
