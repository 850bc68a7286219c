"""The gated activation of an MLP: act(gate) * up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from planish.ir.axes import AxisRule, broadcast_ties, leading_ties
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float, choose_leading
from planish.ir.spaces.laws import Equation, Indexing, any_of, elementwise, fresh, operand, result
from planish.ir.spaces.terms import Sum
from planish.ir.types import TensorType

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class GatedActivation(Op):
    """act(gate) * up for two tensors of one type; without `up`, the last axis of `gate` holds both halves, gate first."""

    name: ClassVar[str] = "gated_activation"
    operand_names: ClassVar[tuple[str, ...]] = ("gate", "up?")
    activation: str

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        gate, up = operands
        assert gate is not None
        self.expect(self.activation in ACTIVATIONS, f"{self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        self.expect(gate.rank >= 1 and gate.dtype.is_floating_point, f"the gate must be a float tensor, got {gate}")
        if up is not None:
            self.expect(gate == up, f"gate {gate} and up {up} differ")
            return (gate,)
        last = gate.shape[-1]
        self.expect(isinstance(last, int) and last % 2 == 0, f"the last axis of {gate} does not hold two halves")
        return (gate.with_shape((*gate.shape[:-1], last // 2)),)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        gate, up = operands
        assert gate is not None
        if up is None:
            gate, up = gate.chunk(2, -1)
        return (ACTIVATIONS[self.activation](gate) * up,)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        gate, up = operands
        assert gate is not None
        return AxisRule(leading_ties(0, gate.rank - 1)) if up is None else broadcast_ties(operands, gate)

    def indexing(self, *operands: TensorType | None) -> Indexing:
        gate, up = operands
        assert gate is not None
        if up is None:
            *lead, n = fresh(*self.infer(*operands)[0].shape)
            # Both halves have one exponent.
            joined: tuple[Equation, ...] | None = None
            if self.activation == "relu":
                joined = ({operand(0): 2, result(): -1},)
            places, vanishing = [operand(0), result()], any_of(operand(0))
            laws = [elementwise(term, places, joined, vanishing=vanishing) for term in (*lead, n)]
            return Indexing(((*lead, Sum((n, n))), None), ((*lead, n),), tuple(laws))
        terms = fresh(*gate.shape)
        through: tuple[Equation, ...] = ({operand(0): 1}, {operand(1): 1, result(): -1})
        # relu(2 x) = 2 relu(x)
        scales = ({operand(0): 1, operand(1): 1, result(): -1},) if self.activation == "relu" else through
        # Every activation of zero is zero.
        places, either = [operand(0), operand(1), result()], any_of(operand(0), operand(1))
        laws = [elementwise(term, places, scales, through, vanishing=either) for term in terms]
        return Indexing((terms, terms), (terms,), tuple(laws))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype, joined, half = choose_float(choose), choose.boolean(), choose.integer(1, 6)
        gate = TensorType(dtype, (*choose_leading(choose), 2 * half if joined else half))
        return Sample(cls(choose.choice(list(ACTIVATIONS))), (gate, None if joined else gate))
