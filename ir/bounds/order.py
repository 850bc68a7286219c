"""Comparisons, truth values, choices, and operators that pick the larger: where rounding may turn a decision.

A truth value carries the error 1 where rounding could turn it, else 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from planish.ir.bounds.mode import Call, rule, wide


def blended(call: Call, condition: torch.Tensor, yes: Any, no: Any) -> torch.Tensor:
    """The error of `yes` where the condition holds, else of `no`; where it may turn, of either plus their distance."""
    yes_error, no_error = call.error(yes), call.error(no)
    chosen = torch.where(condition, yes_error, no_error)
    turned = call.mode.error(condition)
    if turned is None or not bool((turned > 0).any()):
        return chosen
    distance = (wide(yes) - wide(no)).abs() + torch.maximum(yes_error, no_error)
    return torch.where(turned > 0, torch.nan_to_num(distance, nan=math.inf, posinf=math.inf), chosen)


COMPARISONS = [f"{name}.{kind}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Tensor", "Scalar")]


@rule(*COMPARISONS)
def _compare(call: Call) -> torch.Tensor:
    a, b = call["self"], call["other"]
    slack = _operand_error(call, a) + _operand_error(call, b)
    return ((slack > 0) & ((wide(a) - wide(b)).abs() <= slack)).to(torch.float64)


def _operand_error(call: Call, operand: Any) -> torch.Tensor:
    """Like `Call.error`, but the result of a comparison has no dtype to which an operand would be rounded."""
    found = call.mode.error(operand) if isinstance(operand, torch.Tensor) else None
    return torch.zeros((), dtype=torch.float64) if found is None else found


@rule("logical_not.default", "bitwise_not.default")
def _not(call: Call) -> torch.Tensor:
    return call.error(call["self"])


@rule(
    "logical_and.default", "bitwise_and.Tensor", "__and__.Tensor",
    "logical_or.default", "bitwise_or.Tensor", "__or__.Tensor",
)  # fmt: skip
def _connect(call: Call) -> torch.Tensor:
    a, b = call["self"], call["other"]
    ea, eb = _operand_error(call, a), _operand_error(call, b)
    decides = "_or" in call.function._schema.name
    # A certain truth decides an `or`, a certain falsehood an `and`, whatever the other operand is.
    decided = ((a == decides) & (ea == 0)) | ((b == decides) & (eb == 0))
    return torch.where(decided, 0.0, torch.maximum(ea, eb).clamp(max=1.0))


@rule("logical_xor.default", "bitwise_xor.Tensor")
def _exclusive(call: Call) -> torch.Tensor:
    return torch.maximum(_operand_error(call, call["self"]), _operand_error(call, call["other"])).clamp(max=1.0)


@rule("any.default", "any.dim", "any.dims", "all.default", "all.dim", "all.dims")
def _quantify(call: Call) -> torch.Tensor:
    error = call.error(call["self"]).expand(call["self"].shape)
    dims, keep = call.arguments.get("dim"), call.arguments.get("keepdim", False)
    if dims is None or dims == []:
        return error.amax()
    return error.amax(dims, keepdim=keep)


@rule("isnan.default", "isinf.default", "isfinite.default")
def _classify(call: Call) -> None:
    return None


@rule("maximum.default", "minimum.default", "clamp_min.Tensor", "clamp_max.Tensor")
def _extreme(call: Call) -> torch.Tensor:
    other = call.arguments.get("other", call.arguments.get("min", call.arguments.get("max")))
    return torch.maximum(call.error(call["self"]), call.error(other))


@rule("clamp.default", "clamp_min.default", "clamp_max.default", "clamp.Tensor", "hardtanh.default", "relu.default")
def _clamp(call: Call) -> torch.Tensor:
    """Clamping never increases a distance; where both ends of the interval are cut off, nothing of the error is left."""
    low = call.arguments.get("min", call.arguments.get("min_val", 0.0 if "relu" in str(call.function) else None))
    high = call.arguments.get("max", call.arguments.get("max_val"))
    x, error = wide(call["self"]), call.error(call["self"])
    ends = torch.zeros((), dtype=torch.float64)
    bounds = [wide(-math.inf if low is None else low), wide(math.inf if high is None else high)]
    for end in (low, high):
        if end is not None:
            ends = torch.maximum(ends, call.error(end))
    cut = ((x + error) <= bounds[0]) | ((x - error) >= bounds[1])
    return torch.where(cut, 0.0, error.minimum(bounds[1] - bounds[0])) + ends


@rule("amax.default", "amin.default", "max.default", "min.default")
def _reduce_extreme(call: Call) -> torch.Tensor:
    error = call.error(call["self"]).expand(call["self"].shape)
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        return error.amax()
    return error.amax(dims, keepdim=call.arguments.get("keepdim", False))


def _uncertain_indices(error: torch.Tensor, indices: torch.Tensor, certain: torch.Tensor) -> torch.Tensor:
    return torch.where(certain, 0.0, math.inf).expand(indices.shape)


@rule("max.dim", "min.dim")
def _extreme_with_index(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    x = wide(call["self"]) * (1.0 if "max" in str(call.function) else -1.0)
    error, dim = call.error(call["self"]).expand(x.shape), call["dim"]
    values = error.amax(dim, keepdim=call["keepdim"])
    return values, _uncertain_indices(error, call.value[1], _separated(x, error, dim, 1, call["keepdim"]))


def _separated(x: torch.Tensor, error: torch.Tensor, dim: int, count: int, keepdim: bool = True) -> torch.Tensor:
    """Whether the `count` largest elements along an axis are in their order whatever the errors."""
    if not bool((error > 0).any()):
        return torch.ones((), dtype=torch.bool)
    ordered, order = x.sort(dim, descending=True)
    slack = error.gather(dim, order)
    size = min(count, x.shape[dim] - 1)
    gaps = ordered.narrow(dim, 0, size) - ordered.narrow(dim, 1, size)
    margins = slack.narrow(dim, 0, size) + slack.amax(dim, keepdim=True)
    return (gaps > margins).all(dim, keepdim=keepdim)


@rule("topk.default", "sort.default", "sort.stable")
def _ordered(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted values move by no more than the largest error; indices are certain where all gaps are wide enough."""
    descending = call.arguments.get("largest", call.arguments.get("descending"))
    x = wide(call["self"]) * (1.0 if descending else -1.0)
    error, dim = call.error(call["self"]).expand(x.shape), call["dim"]
    certain = _separated(x, error, dim, call.arguments.get("k", x.shape[dim]))
    moved = error.amax(dim, keepdim=True).expand(call.value[0].shape)
    return moved, _uncertain_indices(error, call.value[1], certain)


@rule("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def _max_pool(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    error = call.error(call["self"]).expand(call["self"].shape).contiguous()
    arguments = [call[k] for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")]
    values = call.function(error, *arguments)[0]
    exact = torch.tensor(not bool((error > 0).any()))
    return values, _uncertain_indices(error, call.value[1], exact)
