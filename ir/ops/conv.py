"""Two-dimensional convolution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F

from planish.ir.axes import AxisRule, AxisTie
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float
from planish.ir.spaces.laws import Equation, Indexing, affine, elementwise, fresh, linear, operand, result
from planish.ir.spaces.narrowing import Cut, Narrowed
from planish.ir.spaces.terms import Product
from planish.ir.types import Dim, TensorType, as_dim, floor_div, same_dim


@dataclass(frozen=True)
class Conv2d(Op):
    """Cross-correlation of x [batch, in, height, width] with weight [out, in / groups, kh, kw], plus bias [out].

    Zero padding on both sides; sizes follow torch.nn.functional.conv2d.
    """

    name: ClassVar[str] = "conv2d"
    operand_names: ClassVar[tuple[str, ...]] = ("x", "weight", "bias?")
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        x, weight, bias = operands
        assert x is not None and weight is not None
        self.expect(x.rank == 4 and weight.rank == 4, f"x and weight must have four axes, got {x} and {weight}")
        channels, outs = x.shape[1], weight.shape[0]
        self.expect(
            same_dim(channels, weight.shape[1] * self.groups), f"{weight} does not fit {x} in {self.groups} groups"
        )
        self.expect(
            isinstance(outs, int) and outs % self.groups == 0, f"{self.groups} groups do not divide {outs} outputs"
        )
        for other in (weight, bias):
            self.expect(other is None or other.dtype == x.dtype, f"dtypes differ: {x} and {other}")
        self.expect(bias is None or bias.shape == (outs,), f"the bias must be [{outs}], got {bias}")
        spatial = [self._size(x.shape[2 + a], weight.shape[2 + a], a) for a in range(2)]
        return (x.with_shape((x.shape[0], outs, *spatial)),)

    def _size(self, size: Dim, kernel: Dim, axis: int) -> Dim:
        reach = self.dilation[axis] * (kernel - 1) + 1
        steps = floor_div(as_dim(size + 2 * self.padding[axis] - reach), self.stride[axis])
        self.expect(not isinstance(steps, int) or steps >= 0, f"the kernel is larger than the padded input ({size})")
        return as_dim(steps + 1)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x, weight, bias = operands
        assert x is not None and weight is not None
        return (F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        ties = [AxisTie(0, 0, 0, 0), AxisTie(1, 0, 0, 1)]
        if operands[2] is not None:
            ties.append(AxisTie(2, 0, 0, 1))
        return AxisRule(tuple(ties))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        """Channels are pairs: their group, and their place in it."""
        x, weight, bias = operands
        assert x is not None and weight is not None and isinstance(weight.shape[0], int)
        batch, height, width, ins, down, across = fresh(x.shape[0], *x.shape[2:], *weight.shape[1:])
        group, outs = fresh(self.groups, weight.shape[0] // self.groups)
        new_height, new_width = fresh(*self.infer(*operands)[0].shape[2:])
        added = () if bias is None else (operand(2),)
        product = {operand(0): 1, operand(1): 1, result(): -1}
        through: tuple[Equation, ...] = (product, *({place: 1, result(): -1} for place in added))
        laws = [
            linear(ins, operand(0), dual=[operand(1)]),
            linear(outs, operand(1), *added, result()),
            elementwise(
                group,
                [operand(0), operand(1), *added, result()],
                through,
                through,
                vanishing=(frozenset((operand(0), *added)), frozenset((operand(1), *added))),
            ),
            linear(batch, operand(0), result()) if bias is None else affine(batch, operand(0), result()),
        ]
        columns = Product((group, outs))
        terms = (
            (batch, Product((group, ins)), height, width),
            (columns, ins, down, across),
            None if bias is None else (columns,),
        )
        return Indexing(terms, ((batch, columns, new_height, new_width),), tuple(laws))

    def narrowed(self, cut: Cut) -> Narrowed:
        """Groups that are gone are counted no more."""
        x, weight = cut.after[:2]
        assert x is not None and weight is not None
        return Narrowed(replace(self, groups=floor_div(x.shape[1], weight.shape[1])))

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype, groups = choose_float(choose), choose.integer(1, 2)
        kernel = (choose.integer(1, 3), choose.integer(1, 3))
        op = cls(
            stride=(choose.integer(1, 2), choose.integer(1, 2)),
            padding=(choose.integer(0, 2), choose.integer(0, 2)),
            dilation=(choose.integer(1, 2), choose.integer(1, 2)),
            groups=groups,
        )
        ins, outs = groups * choose.integer(1, 3), groups * choose.integer(1, 3)
        x = TensorType(dtype, (choose.integer(1, 2), ins, choose.integer(5, 8), choose.integer(5, 8)))
        bias = TensorType(dtype, (outs,)) if choose.boolean() else None
        return Sample(op, (x, TensorType(dtype, (outs, ins // groups, *kernel)), bias))
