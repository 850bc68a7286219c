"""One form for calls that torch writes in several ways.

A view without its demand on memory layout is a reshape, a copy or a move is the tensor itself, a fused product is the
product and the sum. Each form computes what the call computes; what follows then has fewer cases to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import sympy
import torch

from planish.ir import Dim, Operand, TensorType
from planish.ir.types import as_dim


class Emit(Protocol):
    """Appends one ATen call and returns its result, or its results with `several`."""

    def __call__(self, overload: str, *arguments: Any, **keywords: Any) -> Operand: ...
    def several(self, overload: str, *arguments: Any) -> tuple[Operand, ...]: ...


# The call's arguments by name, defaults included, and the type of its first result -> the result in normal form (the
# results of a call with several); None leaves the call as it is.
NormalForm: TypeAlias = Callable[[Emit, Mapping[str, Any], TensorType], "Operand | tuple[Operand, ...] | None"]

_END = 2**63 - 1


def _itself(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand:
    x: Operand = a["self"]
    return x


def _itself_if_unchanged(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand | None:
    x: Operand = a["self"]
    return x if x.type == result else None


def _reshape(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand:
    """With every size spelt out; layout is not part of the IR, so that a view is no different."""
    x: Operand = a["self"]
    return x if x.type == result else emit("reshape.default", x, result.shape)


def _cast(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand:
    x: Operand = a["self"]
    return x if x.type == result else emit("_to_copy.default", x, dtype=result.dtype)


def _dropout(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand | None:
    x: Operand = a["input"]
    return None if a["train"] and a["p"] else x


def _transposed(first: int, second: int) -> NormalForm:
    """Two axes swapped; a tensor with fewer axes is itself."""

    def form(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand:
        x: Operand = a["self"]
        return x if result.rank < 2 else emit("transpose.int", x, first % result.rank, second % result.rank)

    return form


def _reversed(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand:
    return emit("permute.default", a["self"], tuple(reversed(range(result.rank))))


def _chunk(emit: Emit, a: Mapping[str, Any], result: TensorType) -> tuple[Operand, ...]:
    """Parts of the size of the first one; only the last may be smaller."""
    axis = a["dim"] % result.rank
    return emit.several("split.Tensor", a["self"], result.shape[axis], axis)


def _split(overload: str, sizes: str) -> NormalForm:
    """Along an axis counted from the front."""
    return lambda emit, a, result: emit.several(overload, a["self"], a[sizes], a["dim"] % result.rank)


def _slice(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand | None:
    """With its start and end counted from the front, where they are known."""
    x, axis, step = a["self"], a["dim"] % result.rank, a["step"]
    size, rows = x.type.shape[axis], result.shape[axis]
    start = _from_front(a["start"] or 0, size)
    if x.type == result and start == 0 and step == 1:
        return _itself(emit, a, result)
    if isinstance(size, int) and not isinstance(rows, int):
        # The trace knows a bound of the symbolic size that the type rule of a slice does not. Rows picked by their
        # indices need no bound, and a row beyond the end is an error instead of a shorter result.
        return emit("index_select.default", x, axis, _range(emit, start, as_dim(start + rows * step), step))
    end = size if a["end"] in (None, _END) else _from_front(a["end"], size)
    if isinstance(size, int) and isinstance(end, int):
        end = min(end, size)
    return emit("slice.Tensor", x, axis, start, end, *(() if step == 1 else (step,)))


def _from_front(index: Dim, size: Dim) -> Dim:
    return as_dim(index + size) if sympy.sympify(index).is_negative else index


def _range(emit: Emit, start: Any, end: Any, step: Any) -> Operand:
    if (start, step) == (0, 1):
        return emit("arange.default", end)
    return emit("arange.start", start, end) if step == 1 else emit("arange.start_step", start, end, step)


def _arange(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand | None:
    """Counting from 0 in i64 is said in one way."""
    counts = a.get("start", 0) == 0 and result.dtype == torch.int64
    return emit("arange.default", a["end"]) if counts else None


def _batch_norm(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand:
    """Inference of a batch norm without the empty statistics that the functional form also returns."""
    statistics = (a["weight"], a["bias"], a["running_mean"], a["running_var"])
    return emit("batch_norm.default", a["input"], *statistics, False, a["momentum"], a["eps"], False)


def _fused_product(product: str, left: str, right: str) -> NormalForm:
    """beta * self + alpha * (left @ right)."""

    def form(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand:
        scaled, added = emit(product, a[left], a[right]), a["self"]
        if a["alpha"] != 1:
            scaled = emit("mul.Tensor", scaled, a["alpha"])
        if a["beta"] != 1:
            added = emit("mul.Tensor", added, a["beta"])
        return emit("add.Tensor", scaled, added)

    return form


def _renamed(overload: str, *kept: str) -> NormalForm:
    """Another overload that means the same, with the arguments that matter."""
    return lambda emit, a, result: emit(overload, *(a[name] for name in kept))


def _filled(overload: str, *kept: str) -> NormalForm:
    """A constant of the result's size and dtype, which does not read the tensor that it is made like."""
    return lambda emit, a, result: emit(overload, result.shape, *(a[name] for name in kept), dtype=result.dtype)


def _softmax(emit: Emit, a: Mapping[str, Any], result: TensorType) -> Operand | None:
    """Without a dtype that the input has already."""
    same = a["dtype"] is not None and a["self"].type.dtype == result.dtype
    return emit("softmax.int", a["self"], a["dim"]) if same else None


NORMAL_FORMS: dict[str, NormalForm] = {
    **dict.fromkeys(
        ("clone.default", "alias.default", "detach.default", "detach_.default", "contiguous.default"), _itself
    ),
    "lift_fresh_copy.default": _itself,
    "dropout.default": _dropout,
    "expand.default": _itself_if_unchanged,
    **dict.fromkeys(("_to_copy.default", "type_as.default"), _cast),
    **dict.fromkeys(("to.dtype", "to.device", "to.dtype_layout", "to.other"), _cast),
    **dict.fromkeys(("view.default", "_unsafe_view.default", "reshape.default", "view_as.default"), _reshape),
    **dict.fromkeys(("flatten.using_ints", "unflatten.int", "reshape_as.default", "ravel.default"), _reshape),
    "t.default": _transposed(0, 1),
    "mT.default": _transposed(-2, -1),
    "numpy_T.default": _reversed,
    "chunk.default": _chunk,
    "split.Tensor": _split("split.Tensor", "split_size"),
    "split.sizes": _split("split_with_sizes.default", "split_size"),
    "split_with_sizes.default": _split("split_with_sizes.default", "split_sizes"),
    "slice.Tensor": _slice,
    "arange.default": _arange,
    "arange.start": _arange,
    "batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "addmm.default": _fused_product("mm.default", "mat1", "mat2"),
    "baddbmm.default": _fused_product("bmm.default", "batch1", "batch2"),
    "__and__.Tensor": _renamed("bitwise_and.Tensor", "self", "other"),
    "__or__.Tensor": _renamed("bitwise_or.Tensor", "self", "other"),
    "embedding.default": _renamed("embedding.default", "weight", "indices"),
    "layer_norm.default": _renamed("layer_norm.default", "input", "normalized_shape", "weight", "bias", "eps"),
    "softmax.int": _softmax,
    "new_ones.default": _filled("ones.default"),
    "new_zeros.default": _filled("zeros.default"),
    "new_full.default": _filled("full.default", "fill_value"),
}


def overload_name(operator: torch._ops.OpOverload) -> str:
    """The name of an ATen operator as the IR writes it: "packet.overload"."""
    return f"{operator._schema.name.removeprefix('aten::')}.{operator._overloadname or 'default'}"
