"""The Hadamard transform at run time, where no rotation can be multiplied into parameters: behind an activation, say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.ir.axes import AxisRule, leading_ties
from planish.ir.hadamard import core_of, hadamard
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float, choose_leading
from planish.ir.spaces.laws import Indexing, fresh, linear, operand, result
from planish.ir.spaces.terms import product
from planish.ir.types import TensorType


@dataclass(frozen=True)
class Hadamard(Op):
    """y[..., c b + i] = sum_j H[i, j] x[..., c b + j] / sqrt(b) for blocks c of b = `block` elements of the last axis.

    H is `ir.hadamard.hadamard(block)`, a Hadamard matrix K of a small order times a power of two P: element (k P + p,
    l P + q) is K[k, l] (-1)^popcount(p & q). It is computed in at least float32: sums and differences in pairs over the
    elements of each P, then sums over K, then one product with 1 / sqrt(b). The transform is orthogonal, so a linear map
    whose weight is transformed along its input axis too gives the same results.

    Source: Sylvester's and Paley's matrices; the fast transform is Fino and Algazi, Unified matrix treatment of the fast
    Walsh-Hadamard transform (1976).
    """

    name: ClassVar[str] = "hadamard"
    operand_names: ClassVar[tuple[str, ...]] = ("x",)
    block: int

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        (x,) = operands
        assert x is not None
        self.expect(
            x.rank >= 1 and x.dtype.is_floating_point, f"the input must be a float tensor with an axis, got {x}"
        )
        self.expect(core_of(self.block) is not None, f"no Hadamard matrix of order {self.block} is known here")
        size = x.shape[-1]
        fits = isinstance(size, int) and size % self.block == 0
        self.expect(fits, f"the last axis of {x} is not cut into blocks of {self.block}")
        return (x,)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        (x,) = operands
        assert x is not None
        core = core_of(self.block) or 1
        power = self.block // core
        wide = x if x.dtype == torch.float64 else x.to(torch.float32)
        blocks = (*x.shape[:-1], x.shape[-1] // self.block, core)
        half = 1
        while half < power:
            pairs = wide.reshape(*blocks, power // (2 * half), 2, half)
            first, second = pairs.select(-2, 0), pairs.select(-2, 1)
            wide = torch.stack([first + second, first - second], -2)
            half *= 2
        if core > 1:
            wide = torch.matmul(hadamard(core).to(wide.dtype), wide.reshape(*blocks, power))
        return ((wide.reshape(x.shape) * (1 / math.sqrt(self.block))).to(x.dtype),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        (x,) = operands
        assert x is not None
        return AxisRule(leading_ties(0, x.rank - 1))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        """The last axis is pairs of a block, over which it is linear, and a place in it, which it reads by its position."""
        (x,) = operands
        assert x is not None
        size = x.shape[-1]
        assert isinstance(size, int)
        *lead, blocks, before, after = fresh(*x.shape[:-1], size // self.block, self.block, self.block)
        laws = tuple(linear(term, operand(0), result()) for term in (*lead, blocks))
        return Indexing(((*lead, product((blocks, before))),), ((*lead, product((blocks, after))),), laws)

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        block = choose.choice([1, 2, 4, 8, 12, 20, 24])
        # Few elements: whoever draws them too has to draw each.
        lead = choose_leading(choose) if block <= 8 else choose_leading(choose)[:1]
        x = TensorType(choose_float(choose), (*lead, choose.integer(1, max(1, 8 // block)) * block))
        return Sample(cls(block), (x,))
