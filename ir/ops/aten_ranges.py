"""Values that index operands of ATen operators may hold. What is not listed takes any value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from planish.ir.types import Dim, TensorType, as_dim

Ranges: TypeAlias = "dict[int, tuple[Dim, Dim]]"
# arguments with operand numbers in place of tensors, operand types -> the ranges
AtenRanges: TypeAlias = Callable[[list[Any], "tuple[TensorType | None, ...]"], Ranges]


def _below(number: int, size: Dim) -> Ranges:
    return {number: (0, as_dim(size - 1))}


def _embedding(arguments: list[Any], operands: tuple[TensorType | None, ...]) -> Ranges:
    table = operands[arguments[0]]
    assert table is not None
    return _below(arguments[1], table.shape[0])


def _along_axis(arguments: list[Any], operands: tuple[TensorType | None, ...]) -> Ranges:
    x = operands[arguments[0]]
    assert x is not None
    return _below(arguments[2], x.shape[arguments[1]] if x.rank else 1)


def _index(arguments: list[Any], operands: tuple[TensorType | None, ...]) -> Ranges:
    x = operands[arguments[0]]
    assert x is not None
    ranges: Ranges = {}
    for axis, number in enumerate(arguments[1]):
        index = None if number is None else operands[number]
        if index is not None and not index.dtype.is_floating_point and index.dtype.itemsize > 1:
            ranges |= _below(number, x.shape[axis])
    return ranges


ATEN_RANGES: dict[str, AtenRanges] = {
    "embedding.default": _embedding,
    "gather.default": _along_axis,
    "index.Tensor": _index,
    "index_select.default": _along_axis,
}
