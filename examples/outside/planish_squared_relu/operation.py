"""The squared rectifier (So et al., "Primer: Searching for Efficient Transformers", 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.ir import TensorType
from planish.ir.axes import AxisRule, broadcast_ties
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float, choose_leading


@dataclass(frozen=True)
class SquaredRelu(Op):
    """max(x, 0)^2 for each element of a float tensor."""

    name: ClassVar[str] = "squared_relu"
    operand_names: ClassVar[tuple[str, ...]] = ("x",)

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        (x,) = operands
        assert x is not None
        self.expect(x.dtype.is_floating_point, f"x must be a float tensor, got {x}")
        return (x,)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        (x,) = operands
        assert x is not None
        return (torch.relu(x).square(),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        (x,) = operands
        assert x is not None
        return broadcast_ties(operands, x)

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        return Sample(cls(), (TensorType(choose_float(choose), (*choose_leading(choose), choose.integer(1, 6))),))
