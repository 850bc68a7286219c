"""How the axes of an operation's results follow from the axes of its operands.

A *tie* says that the result at index i along one axis depends on an operand only at index i along one of its axes: the
operation is pointwise over that pair. Axes of an operand without a tie are mixed (contracted, reduced, shuffled, read by
position). An operation that returns no rule is a barrier: nothing is assumed about it. The sequence analysis reads ties
today; the analysis of spaces adds its own facts to the same record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planish.ir.types import Dim, TensorType, as_dim, same_dim


@dataclass(frozen=True)
class AxisTie:
    """Index i of `axis` in operand number `operand` becomes index i of `result_axis` in result number `result`."""

    operand: int
    axis: int
    result: int
    result_axis: int


@dataclass(frozen=True)
class AxisRule:
    """All ties of one operation on operands of known types. What is not tied is mixed."""

    ties: tuple[AxisTie, ...]

    def results_of(self, operand: int, axis: int) -> frozenset[tuple[int, int]]:
        """The (result, axis) pairs to which one axis of one operand is tied."""
        return frozenset((t.result, t.result_axis) for t in self.ties if (t.operand, t.axis) == (operand, axis))


def leading_ties(operand: int, count: int, results: int = 1) -> tuple[AxisTie, ...]:
    """Ties between the first `count` axes of an operand and the same axes of each result."""
    return tuple(AxisTie(operand, axis, result, axis) for result in range(results) for axis in range(count))


def broadcast_ties(types: Iterable[TensorType | None], result: TensorType) -> AxisRule:
    """The rule of an elementwise operation: axes align from the right, broadcast axes are independent of the index."""
    ties = []
    for number, operand in enumerate(types):
        if operand is None:
            continue
        offset = result.rank - operand.rank
        for axis, dim in enumerate(operand.shape):
            if same_dim(dim, result.shape[axis + offset]):
                ties.append(AxisTie(number, axis, 0, axis + offset))
    return AxisRule(tuple(ties))


def reshape_ties(operand: TensorType, result: TensorType, number: int = 0) -> AxisRule:
    """The rule of a reshape: an axis is tied when it keeps its size and all axes before it multiply to the same size."""
    strides = list(zip(result.shape, _sizes_before(result), range(result.rank)))
    ties = []
    for axis, (dim, before) in enumerate(zip(operand.shape, _sizes_before(operand))):
        for result_dim, result_before, result_axis in strides:
            if same_dim(dim, result_dim) and same_dim(before, result_before):
                ties.append(AxisTie(number, axis, 0, result_axis))
                break
    return AxisRule(tuple(ties))


def _sizes_before(tensor: TensorType) -> list[Dim]:
    """For each axis, the product of the sizes of the axes before it."""
    sizes: list[Dim] = []
    product: Dim = 1
    for dim in tensor.shape:
        sizes.append(product)
        product = as_dim(product * dim)
    return sizes
