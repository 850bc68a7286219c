"""Sums, means, softmax and pooling."""

from __future__ import annotations

import math
from typing import Any

import torch

from planish.ir.bounds.mode import Call, rule, wide
from planish.ir.bounds.rounding import gamma


def _count(x: torch.Tensor, dims: Any) -> int:
    axes = range(x.dim()) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else dims)
    return math.prod(x.shape[a] for a in axes)


def _sum(x: torch.Tensor, dims: Any, keepdim: bool) -> torch.Tensor:
    return x.sum() if dims is None or dims == [] else x.sum(dims, keepdim=keepdim)


def _sum_error(call: Call) -> torch.Tensor:
    x, dims, keep = call["self"], call.arguments.get("dim"), call.arguments.get("keepdim", False)
    error = _sum(call.error(x).expand(x.shape), dims, keep)
    if not call.dtype.is_floating_point:
        return error
    return error + gamma(_count(x, dims) - 1, call.accumulation) * _sum(wide(x).abs(), dims, keep)


@rule("sum.default", "sum.dim_IntList")
def _total(call: Call) -> torch.Tensor:
    return _sum_error(call) + call.output_rounding


@rule("mean.default", "mean.dim")
def _mean(call: Call) -> torch.Tensor:
    return _sum_error(call) / max(1, _count(call["self"], call.arguments.get("dim"))) + call.rounding(2)


@rule("cumsum.default")
def _running_sum(call: Call) -> torch.Tensor:
    x, dim = call["self"], call["dim"]
    error = call.error(x).expand(x.shape).cumsum(dim)
    if not call.dtype.is_floating_point:
        return error
    # A running sum may be carried in the result's own dtype.
    count = x.shape[dim] if x.dim() else 1
    return error + gamma(count, call.unit) * wide(x).abs().cumsum(dim) + call.output_rounding


VANISHING = -745.0
"""Below it, exp is 0 in float64."""


def _log_spread(call: Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For a softmax: x - max, the bound on the error of that exponent (0 where its exponential vanishes), and the bound on
    the error of the denominator's logarithm."""
    x, dim = wide(call["self"]), call["dim"]
    error = call.error(call["self"]).expand(x.shape)
    shifted = x - x.amax(dim, keepdim=True)
    unit = call.accumulation
    spread = error + unit * shifted.abs() + 4 * unit
    # What lies so far below the largest that its exponential vanishes whatever the errors counts for nothing.
    visible = torch.isfinite(shifted) & (shifted + spread > VANISHING)
    spread = torch.where(visible, spread, 0.0)
    weights = torch.where(visible, shifted.exp(), 0.0)
    weights = weights / weights.sum(dim, keepdim=True).clamp(min=1e-300)
    highest = spread.amax(dim, keepdim=True)
    tilted = (weights * (spread - highest).exp()).sum(dim, keepdim=True)
    denominator = highest + tilted.clamp(min=1e-300).log() + gamma(x.shape[dim], unit)
    return shifted, spread, denominator


@rule("_softmax.default", "softmax.int")
def _softmax(call: Call) -> torch.Tensor:
    """p_i = exp(x_i) / sum exp(x): both logarithms move by what the exponents move."""
    shifted, spread, denominator = _log_spread(call)
    total = spread + denominator + 4 * call.accumulation
    y = wide(call.value)
    vanished = torch.where(spread > 0, (shifted + total).exp(), 0.0)
    error = torch.where(y == 0, vanished, y * torch.expm1(total))
    # Over an axis that is not the last one torch keeps exponentials in x's own dtype and rounds again at the division.
    last = call["dim"] % max(shifted.dim(), 1) == max(shifted.dim(), 1) - 1
    kept = 0.0 if last else 2 * call.unit
    return torch.nan_to_num(error, nan=1.0, posinf=1.0).clamp(max=1.0) + kept * y.abs() + call.rounding()


@rule("_log_softmax.default", "log_softmax.int")
def _log_softmax(call: Call) -> torch.Tensor:
    shifted, _, denominator = _log_spread(call)
    exponent = torch.where(torch.isfinite(shifted), call.accumulation * shifted.abs(), 0.0)
    # Depending on the axis, torch keeps x - max, or the sum and its logarithm, in x's own dtype before it subtracts.
    kept = torch.where(torch.isfinite(shifted), call.unit * (1 + shifted.abs() + wide(call.value).abs()), 0.0)
    return call.error(call["self"]) + exponent + denominator + kept + call.rounding(4)


@rule("logsumexp.default")
def _logsumexp(call: Call) -> torch.Tensor:
    x, dims, keep = wide(call["self"]), call["dim"], call["keepdim"]
    error = call.error(call["self"]).expand(x.shape).amax(dims, keepdim=keep)
    largest = x.amax(dims, keepdim=keep)
    spread = torch.where(torch.isfinite(largest), largest.abs(), 0.0) * 2 * call.accumulation
    return error + spread + gamma(_count(x, dims) + 4, call.accumulation) + call.rounding(4)


@rule("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _average_pool(call: Call) -> torch.Tensor:
    kernel = call["kernel_size"]
    count = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** int(call.function._schema.name[-2])
    return _positive_linear(call, count + 1)


@rule("_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")
def _adaptive_pool(call: Call) -> torch.Tensor:
    return _positive_linear(call, math.prod(call["self"].shape[2:]) + 1)


@rule("upsample_bilinear2d.default", "upsample_bilinear2d.vec", "upsample_linear1d.default", "upsample_linear1d.vec")
def _interpolate(call: Call) -> torch.Tensor:
    return _positive_linear(call, 16)


def _positive_linear(call: Call, count: int) -> torch.Tensor:
    """A linear map with positive coefficients and `count` roundings: apply it to errors and magnitudes."""
    first, *rest = call.arguments.values()
    error = call.function(call.error(first).expand(first.shape).contiguous(), *rest)
    magnitude = call.function(wide(first).abs(), *rest)
    found: torch.Tensor = error + gamma(count, call.accumulation) * magnitude + call.output_rounding
    return found
