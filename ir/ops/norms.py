"""Normalisation over the last axis. Statistics are computed in at least float32, as the reference models do."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from planish.ir.axes import AxisRule, leading_ties
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float, choose_leading
from planish.ir.spaces.laws import Family, Indexing, Law, Place, any_of, elementwise, fresh, none, operand, result
from planish.ir.spaces.narrowing import Cut, Narrowed, share
from planish.ir.spaces.terms import Atom
from planish.ir.types import TensorType


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


@dataclass(frozen=True)
class _Norm(Op):
    """What both norms share: a float input, and optional tensors of the last axis' size."""

    eps: float

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        x, *rest = operands
        assert x is not None
        self.expect(
            x.rank >= 1 and x.dtype.is_floating_point, f"the input must be a float tensor with an axis, got {x}"
        )
        for other in rest:
            self.expect(other is None or other == x.with_shape(x.shape[-1:]), f"{other} does not fit the input {x}")
        return (x,)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        x = operands[0]
        assert x is not None
        return AxisRule(leading_ties(0, x.rank - 1))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        x, *rest = operands
        assert x is not None
        *lead, n = fresh(*x.shape)
        places = [operand(0), *(operand(1 + i) for i, o in enumerate(rest) if o is not None), result()]
        rows = elementwise if len(rest) > 1 and rest[1] is not None else _odd
        laws = (self._along(n, places), *(rows(row, [operand(0), result()]) for row in lead))
        return Indexing(((*lead, n), *(None if o is None else (n,) for o in rest)), ((*lead, n),), laws)

    @abstractmethod
    def _along(self, n: Atom, places: list[Place]) -> Law:
        """The law of the axis that is normalised."""


def _odd(row: Atom, places: list[Place]) -> Law:
    """A negative row becomes the negative of its result."""
    return elementwise(row, places, signs=({places[0]: 1, places[1]: -1},), vanishing=any_of(places[0]))


@dataclass(frozen=True)
class RmsNorm(_Norm):
    """y = x / sqrt(mean(x^2) + eps) * weight."""

    name: ClassVar[str] = "rms_norm"
    operand_names: ClassVar[tuple[str, ...]] = ("x", "weight?")

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x, weight = operands
        assert x is not None
        wide = _widen(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return ((normed if weight is None else normed * _widen(weight)).to(x.dtype),)

    def narrowed(self, cut: Cut) -> Narrowed:
        """The mean is still over all entries: those that are gone were zeros."""
        part = share(0, -1, cut)
        return Narrowed(self) if part == 1 else Narrowed(replace(self, eps=self.eps / part), {1: part**-0.5})

    def _along(self, n: Atom, places: list[Place]) -> Law:
        x, *gain, y = places
        if not gain:
            turned = dict.fromkeys(places, 1)
            return Law(n, Family.ORTHOGONAL, turned, none(places), ({x: 1, y: -1},), any_of(x), any_of(x))
        equations = ({x: 1}, {gain[0]: 1, y: -1}), ({x: 1, gain[0]: 1, y: -1},)
        return elementwise(n, places, *equations, silent=any_of(x), vanishing=any_of(x, gain[0]))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype, size = choose_float(choose), choose.integer(1, 9)
        x = TensorType(dtype, (*choose_leading(choose), size))
        return Sample(
            cls(eps=choose.choice([1e-5, 1e-6, 0.01])), (x, TensorType(dtype, (size,)) if choose.boolean() else None)
        )


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, with the variance divided by n."""

    name: ClassVar[str] = "layer_norm"
    operand_names: ClassVar[tuple[str, ...]] = ("x", "weight?", "bias?")

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x, weight, bias = operands
        assert x is not None
        wide = _widen(x)
        centred = wide - wide.mean(-1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        if weight is not None:
            normed = normed * _widen(weight)
        if bias is not None:
            normed = normed + _widen(bias)
        return (normed.to(x.dtype),)

    def _along(self, n: Atom, places: list[Place]) -> Law:
        x, *affine, y = places
        if operand(1) not in affine:
            return Law(n, Family.CENTRED, dict.fromkeys(places, 1), none(places), none(places), None)
        # Less its mean, a zero is none: it counts in the variance.
        equations = ({x: 1}, *({place: 1, y: -1} for place in affine))
        return elementwise(n, places, equations, equations, silent=None, vanishing=(frozenset(affine),))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype, size = choose_float(choose), choose.integer(2, 9)
        x = TensorType(dtype, (*choose_leading(choose), size))
        weight, bias = (TensorType(dtype, (size,)) if choose.boolean() else None for _ in range(2))
        return Sample(cls(eps=choose.choice([1e-5, 1e-6, 0.01])), (x, weight, bias))
