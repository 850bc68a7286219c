"""Linear maps: dense, and of dynamically quantised activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from planish.ir.axes import AxisRule, AxisTie, leading_ties
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float, choose_leading
from planish.ir.spaces.laws import Indexing, Law, Place, affine, any_of, elementwise, fresh, linear, operand, result
from planish.ir.spaces.terms import UNIT, Atom, Term
from planish.ir.types import TensorType, same_dim


def _check_weight(op: Op, inner: object, weight: TensorType, bias: TensorType | None) -> None:
    op.expect(weight.rank == 2, f"the weight must be [out, in], got {weight}")
    op.expect(same_dim(weight.shape[1], inner), f"the input has {inner} features, the weight {weight} takes others")
    if bias is not None:
        op.expect(bias.shape == (weight.shape[0],), f"the bias must be [{weight.shape[0]}], got {bias}")


def _rows(row: Atom, plain: bool, x: Place) -> Law:
    """The law of rows that a map treats one by one; a bias is the same in all of them."""
    return linear(row, x, result()) if plain else affine(row, x, result())


@dataclass(frozen=True)
class Linear(Op):
    """y[..., n] = sum_k x[..., k] * weight[n, k] + bias[n]."""

    name: ClassVar[str] = "linear"
    operand_names: ClassVar[tuple[str, ...]] = ("x", "weight", "bias?")

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        x, weight, bias = operands
        assert x is not None and weight is not None
        self.expect(x.rank >= 1, "the input needs at least one axis")
        _check_weight(self, x.shape[-1], weight, bias)
        for other in (weight, bias):
            self.expect(other is None or other.dtype == x.dtype, f"dtypes differ: {x} and {other}")
        return (x.with_shape((*x.shape[:-1], weight.shape[0])),)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x, weight, bias = operands
        assert x is not None and weight is not None
        return (F.linear(x, weight, bias),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        x, weight, bias = operands
        assert x is not None and weight is not None
        ties = [*leading_ties(0, x.rank - 1), AxisTie(1, 0, 0, x.rank - 1)]
        if bias is not None:
            ties.append(AxisTie(2, 0, 0, x.rank - 1))
        return AxisRule(tuple(ties))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        x, weight, bias = operands
        assert x is not None and weight is not None
        *lead, k = fresh(*x.shape)
        (n,) = fresh(weight.shape[0])
        added = () if bias is None else (operand(2),)
        laws = [linear(k, operand(0), dual=[operand(1)]), linear(n, operand(1), *added, result())]
        laws += [_rows(row, bias is None, operand(0)) for row in lead]
        return Indexing(((*lead, k), (n, k), None if bias is None else (n,)), ((*lead, n),), tuple(laws))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype = choose_float(choose)
        inner, outer = choose.integer(1, 9), choose.integer(1, 9)
        bias = TensorType(dtype, (outer,)) if choose.boolean() else None
        x = TensorType(dtype, (*choose_leading(choose), inner))
        return Sample(cls(), (x, TensorType(dtype, (outer, inner)), bias))


@dataclass(frozen=True)
class QuantizeActivation(Op):
    """Dynamic symmetric quantisation of each row (last axis): s = max|x| / largest, q = round(x / s), ties to even.

    `largest` is the largest code, 2^(bits-1) - 1: 127 for 8 bits, 7 for 4. A row of zeros has scale 0 and codes 0.
    Results: codes i8 of x's shape, whatever their bits, and scales of x's dtype with last axis 1.

    Attributes:
        bits: of a code, 2 to 8.
    """

    name: ClassVar[str] = "quantize_activation"
    operand_names: ClassVar[tuple[str, ...]] = ("x",)
    bits: int = 8

    @property
    def largest(self) -> int:
        """The largest code; the smallest is its negative."""
        return (1 << (self.bits - 1)) - 1

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        (x,) = operands
        assert x is not None
        self.expect(2 <= self.bits <= 8, f"codes of {self.bits} bits are not supported; choose 2 to 8")
        self.expect(
            x.rank >= 1 and x.dtype.is_floating_point, f"the input must be a float tensor with an axis, got {x}"
        )
        return x.with_dtype(torch.int8), x.with_shape((*x.shape[:-1], 1))

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        (x,) = operands
        assert x is not None
        scale = x.abs().amax(-1, keepdim=True) / self.largest
        codes = torch.where(scale == 0, torch.zeros_like(x), x / scale).round().clamp(-self.largest, self.largest)
        return codes.to(torch.int8), scale

    def axes(self, *operands: TensorType | None) -> AxisRule:
        (x,) = operands
        assert x is not None
        return AxisRule(leading_ties(0, x.rank - 1, results=2))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        (x,) = operands
        assert x is not None
        lead, (k,) = fresh(*x.shape[:-1]), fresh(x.shape[-1])
        codes, scale = result(0), result(1)
        silent = any_of(operand(0))
        laws = [
            elementwise(k, [operand(0), codes], signs=({operand(0): 1, codes: -1},), silent=silent, vanishing=silent)
        ]
        for row in lead:
            scales = ({operand(0): 1, scale: -1}, {codes: 1})
            signs = ({operand(0): 1, codes: -1}, {scale: 1})
            laws.append(elementwise(row, [operand(0), codes, scale], scales, signs, vanishing=silent))
        return Indexing(((*lead, k),), ((*lead, k), (*lead, UNIT)), tuple(laws))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        x = TensorType(choose_float(choose), (*choose_leading(choose), choose.integer(1, 9)))
        return Sample(cls(choose.integer(2, 8)), (x,))


@dataclass(frozen=True)
class QuantizedLinear(Op):
    """y[..., n] = scale[...] * sum_k codes[..., k] * weight[n, k] + bias[n], for int8 codes with one scale per row.

    `weight` is the logical (decoded) tensor; with a grouped integer encoding a kernel sums each group in integers.
    """

    name: ClassVar[str] = "quantized_linear"
    operand_names: ClassVar[tuple[str, ...]] = ("codes", "scale", "weight", "bias?")

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        codes, scale, weight, bias = operands
        assert codes is not None and scale is not None and weight is not None
        self.expect(codes.dtype == torch.int8 and codes.rank >= 1, f"the codes must be i8, got {codes}")
        self.expect(
            scale == TensorType(scale.dtype, (*codes.shape[:-1], 1)), f"{scale} does not scale the rows of {codes}"
        )
        _check_weight(self, codes.shape[-1], weight, bias)
        for other in (weight, bias):
            self.expect(other is None or other.dtype == scale.dtype, f"dtypes differ: {scale} and {other}")
        return (scale.with_shape((*codes.shape[:-1], weight.shape[0])),)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        codes, scale, weight, bias = operands
        assert codes is not None and scale is not None and weight is not None
        product = F.linear(codes.to(weight.dtype), weight) * scale
        return (product if bias is None else product + bias,)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        codes, _, _, bias = operands
        assert codes is not None
        last = codes.rank - 1
        ties = [*leading_ties(0, last), *leading_ties(1, last), AxisTie(2, 0, 0, last)]
        if bias is not None:
            ties.append(AxisTie(3, 0, 0, last))
        return AxisRule(tuple(ties))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        codes, _, weight, bias = operands
        assert codes is not None and weight is not None
        lead, (k,) = fresh(*codes.shape[:-1]), fresh(codes.shape[-1])
        (n,) = fresh(weight.shape[0])
        added = () if bias is None else (operand(3),)
        silent = any_of(operand(0), operand(2))
        laws = [elementwise(k, [operand(0), operand(2)], signs=({operand(0): 1, operand(2): -1},), silent=silent)]
        laws.append(linear(n, operand(2), *added, result()))
        for row in lead:
            places = [operand(0), operand(1), result()]
            product = ({operand(0): 1, operand(1): 1, result(): -1},)
            either = any_of(operand(0), operand(1))
            plain = elementwise(row, places, product, product, vanishing=either)
            laws.append(plain if bias is None else elementwise(row, places))
        scales: tuple[Term, ...] = (*lead, UNIT)
        terms = ((*lead, k), scales, (n, k), None if bias is None else (n,))
        return Indexing(terms, ((*lead, n),), tuple(laws))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype = choose_float(choose)
        leading, inner, outer = choose_leading(choose), choose.integer(1, 9), choose.integer(1, 9)
        bias = TensorType(dtype, (outer,)) if choose.boolean() else None
        codes, scale = TensorType(torch.int8, (*leading, inner)), TensorType(dtype, (*leading, 1))
        return Sample(cls(), (codes, scale, TensorType(dtype, (outer, inner)), bias))
