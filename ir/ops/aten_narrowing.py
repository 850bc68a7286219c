"""ATen operators over fewer indices: those whose arguments tell a size, a place, or whose result depends on a count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from planish.ir.errors import IRError
from planish.ir.spaces.narrowing import Cut, share
from planish.ir.types import TensorType, floor_div

Call: TypeAlias = "tuple[str, list[Any], dict[str, Any], float]"
"""Overload, arguments, keywords, and what the result is multiplied by afterwards."""
PICKED = frozenset({"index_select.default", "index.Tensor"})
"""Calls whose second operand numbers indices along an axis of the first."""
Narrower: TypeAlias = Callable[[str, list[Any], dict[str, Any], Cut], Call]
"""From a call and what is taken away to the call without it."""


def _present(operand: TensorType | None) -> TensorType:
    assert operand is not None
    return operand


def _axis(arguments: list[Any], keywords: dict[str, Any], number: int, rank: int) -> int:
    given: int = arguments[number] if len(arguments) > number else keywords.get("dim", 0)
    return given % rank


def _shaped(overload: str, arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> Call:
    """The second argument is the shape of the result."""
    return overload, [arguments[0], cut.results[0].shape, *arguments[2:]], keywords, 1.0


def _unflatten(overload: str, arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> Call:
    x = _present(cut.before[0])
    axis, count = arguments[1] % x.rank, len(arguments[2])
    return overload, [arguments[0], axis, cut.results[0].shape[axis : axis + count]], keywords, 1.0


def _slice(overload: str, arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> Call:
    x, y = _present(cut.before[0]), cut.results[0]
    axis = _axis(arguments, keywords, 1, x.rank)
    start = (arguments[2] if len(arguments) > 2 else keywords.get("start", 0)) or 0
    size, left = x.shape[axis], y.shape[axis]
    if not isinstance(size, int) or not isinstance(left, int):
        return overload, arguments, keywords, 1.0
    first = max(0, start + size) if start < 0 else min(start, size)
    first = cut.staying(0, axis, 0, first)
    return overload, [arguments[0], axis, first, first + left], {}, 1.0


def _select(overload: str, arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> Call:
    x = _present(cut.before[0])
    axis, size = arguments[1] % x.rank, x.shape[arguments[1] % x.rank]
    if not isinstance(size, int):
        return overload, arguments, keywords, 1.0
    index = arguments[2] % size
    if not cut.staying(0, axis, index, index + 1):
        raise IRError(f"the index {index} that it selects would be gone")
    return overload, [arguments[0], axis, cut.staying(0, axis, 0, index)], keywords, 1.0


def _split(overload: str, arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> Call:
    axis = _axis(arguments, keywords, 2, _present(cut.before[0]).rank)
    sizes = tuple(r.shape[axis] for r in cut.results)
    return "split_with_sizes.default", [arguments[0], sizes, *arguments[2:]], keywords, 1.0


def _mean(overload: str, arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> Call:
    """A mean over what stays counts too little."""
    given = arguments[1] if len(arguments) > 1 else keywords.get("dim")
    axes = range(_present(cut.before[0]).rank) if given in (None, (), []) else given
    axes = [axes] if isinstance(axes, int) else axes
    cut_axes = [axis for axis in axes if cut.kept[0] is not None and cut.kept[0][axis] is not None]
    return overload, arguments, keywords, math.prod(share(0, axis, cut) for axis in cut_axes)


def renumbered(arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> dict[int, torch.Tensor]:
    """Of a call that picks: what stays of the indices that its second operand numbers."""
    if isinstance(arguments[1], tuple):
        axis = next(n for n, index in enumerate(arguments[1]) if index is not None)
    else:
        axis = _axis(arguments, keywords, 1, _present(cut.before[0]).rank)
    kept = None if cut.kept[0] is None else cut.kept[0][axis]
    return {} if kept is None else {1: kept}


def _repeat(overload: str, arguments: list[Any], keywords: dict[str, Any], cut: Cut) -> Call:
    x = _present(cut.after[0])
    axis = _axis(arguments, keywords, 2, x.rank)
    return overload, [arguments[0], floor_div(cut.results[0].shape[axis], x.shape[axis]), *arguments[2:]], keywords, 1.0


ATEN_NARROWING: dict[str, Narrower] = {
    **dict.fromkeys("view.default reshape.default _unsafe_view.default expand.default".split(), _shaped),
    "unflatten.int": _unflatten,
    "slice.Tensor": _slice,
    "select.int": _select,
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "chunk.default": _split,
    "mean.dim": _mean,
    "repeat_interleave.self_int": _repeat,
}
