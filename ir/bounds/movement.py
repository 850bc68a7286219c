"""Operators that move elements about, or copy them: errors move along. And operators that make constants."""

from __future__ import annotations

from typing import Any

import torch

from planish.ir.bounds.mode import Call, NoBound, errors_in_place_of_values, rule, wide
from planish.ir.bounds.order import blended
from planish.ir.bounds.rounding import UNIT, unit_roundoff

MOVEMENTS = (
    "alias.default view.default _unsafe_view.default reshape.default _reshape_alias.default permute.default "
    "transpose.int t.default expand.default slice.Tensor select.int unsqueeze.default squeeze.default squeeze.dim "
    "squeeze.dims split.Tensor split_with_sizes.default unbind.int clone.default detach.default cat.default stack.default "
    "flip.default roll.default repeat.default index.Tensor index_select.default gather.default embedding.default "
    "tril.default triu.default diagonal.default unfold.default lift_fresh.default lift_fresh_copy.default "
    "contiguous.default index_put.default scatter.src slice_scatter.default select_scatter.default narrow_copy.default "
    "reflection_pad1d.default reflection_pad2d.default replication_pad1d.default replication_pad2d.default "
    "upsample_nearest2d.default upsample_nearest2d.vec upsample_nearest1d.default pixel_shuffle.default im2col.default "
    "repeat_interleave.self_int chunk.default rot90.default"
).split()


@rule(*MOVEMENTS)
def _move(call: Call) -> Any:
    if all(call.mode.error(t) is None for t in _operands(call)):
        return [None] * len(call.value) if isinstance(call.value, (list, tuple)) else None
    if call.arguments.get("accumulate"):
        raise NoBound("no error rule is known for aten.index_put with accumulation")
    swapped = errors_in_place_of_values(call)
    keywords = {a.name: v for a, v in zip(call.function._schema.arguments, swapped) if a.kwarg_only}
    positional: list[Any] = swapped[: len(swapped) - len(keywords)]
    try:
        return call.function(*positional, **keywords)
    except RuntimeError:
        # A view of the value need not be a view of its error, whose strides may differ.
        dense = [p.contiguous() if isinstance(p, torch.Tensor) else p for p in positional]
        try:
            return call.function(*dense, **keywords)
        except (RuntimeError, IndexError) as error:
            raise NoBound(f"aten.{call.function} moves by indices that rounding could change") from error


def _operands(call: Call) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(call.arguments)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@rule("constant_pad_nd.default")
def _pad(call: Call) -> Any:
    error = call.error(call["self"])
    return torch.constant_pad_nd(error.expand(call["self"].shape), call["pad"], float(call.error(call["value"])))


@rule(
    "zeros.default", "ones.default", "zeros_like.default", "ones_like.default", "new_zeros.default", "new_ones.default",
    "empty.memory_format", "empty_like.default", "new_empty.default", "eye.default", "eye.m",
)  # fmt: skip
def _exact(call: Call) -> Any:
    return None


@rule("full.default", "full_like.default", "new_full.default", "scalar_tensor.default", "fill.Scalar")
def _constant(call: Call) -> Any:
    value: Any = call.arguments.get("fill_value", call.arguments.get("value", call.arguments.get("s")))
    if not call.dtype.is_floating_point or value != value or value in (float("inf"), float("-inf")):
        return None
    kept = float(torch.tensor(value, dtype=call.dtype))
    return None if kept == value else torch.tensor(abs(kept - value), dtype=torch.float64)


@rule("arange.default", "arange.start", "arange.start_step", "linspace.default")
def _range(call: Call) -> Any:
    whole = bool((call.value == call.value.round()).all()) and "steps" not in call.arguments
    return None if whole else call.rounding(4.0)


@rule("_to_copy.default")
def _cast(call: Call) -> Any:
    x, target = call["self"], call.dtype
    if target.is_floating_point and target not in UNIT:
        raise NoBound(f"a float of eight bits is a code, and rounding could turn the choice of one ({target})")
    error = call.mode.error(x)
    if not target.is_floating_point and x.dtype.is_floating_point:
        return None if error is None else _cast_to_integer(call, error)
    if not target.is_floating_point or (unit_roundoff(target) <= unit_roundoff(x.dtype) and x.dtype.is_floating_point):
        return error
    if error is None and not x.dtype.is_floating_point and bool((wide(call.value) == wide(x)).all()):
        return None
    return call.error(x) if error is None or not x.dtype.is_floating_point else error + call.rounding()


def _cast_to_integer(call: Call, error: torch.Tensor) -> torch.Tensor:
    x = wide(call["self"])
    if call.dtype == torch.bool:
        return ((x.abs() <= error) & (error > 0)).to(torch.float64)
    kept = x.trunc()
    return torch.maximum(((x + error).trunc() - kept).abs(), ((x - error).trunc() - kept).abs())


@rule("copy.default")
def _copy(call: Call) -> Any:
    return None if call.mode.error(call["src"]) is None and call["src"].dtype == call.dtype else call.error(call["src"])


@rule("where.self")
def _where(call: Call) -> Any:
    return blended(call, call["condition"], call["self"], call["other"])


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(call: Call) -> Any:
    return blended(call, call["mask"], call["value"], call["self"])
