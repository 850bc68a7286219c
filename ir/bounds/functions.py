"""Elementwise functions: how far a bound on the argument reaches, and how many unit roundoffs torch's own may be off.

The reach is written with the function's largest slope on [x - e, x + e]. The unit roundoffs are declared, not measured:
vectorised libraries promise one unit in the last place (two roundoffs) for the elementary functions; compositions
inside one kernel get what their steps add up to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from planish.ir.bounds.mode import RULES, Call, Rule, rule, wide
from planish.ir.bounds.rounding import UNDERFLOW, accumulation_dtype

Reach = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(x, e, y) -> how far f can be from f(x) = y on [x - e, x + e]."""


def _nearest_zero(x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return (x.abs() - e).clamp(min=0.0)


def _lipschitz(slope: float) -> Reach:
    return lambda x, e, y: slope * e


def _exp(x: torch.Tensor, e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * torch.expm1(e)


def _below(x: torch.Tensor, e: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """`inside` where x - e is positive; 0 where the argument is exact; else unbounded."""
    return torch.where(x - e > 0, inside, torch.where(e == 0, 0.0, math.inf))


def _log(x: torch.Tensor, e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _below(x, e, -torch.log1p(-(e / x).clamp(max=1.0)))


def _sqrt(x: torch.Tensor, e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(e == 0, 0.0, e / (y + (x - e).clamp(min=0.0).sqrt()).clamp(min=1e-300)).minimum(e.sqrt() + y)


def _rsqrt(x: torch.Tensor, e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    near = (x - e).clamp(min=1e-300)
    return _below(x, e, e / (near.sqrt() * (near.sqrt() + x.clamp(min=0.0).sqrt()) * near.sqrt()))


def _tanh(x: torch.Tensor, e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (e / torch.cosh(_nearest_zero(x, e)).square()).clamp(max=2.0)


def _sigmoid(x: torch.Tensor, e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(-_nearest_zero(x, e))
    return (e * s * (1 - s)).clamp(max=1.0)


def _erf(x: torch.Tensor, e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (e * 2 / math.sqrt(math.pi) * torch.exp(-_nearest_zero(x, e).square())).clamp(max=2.0)


def _bounded(slope: float, span: float) -> Reach:
    return lambda x, e, y: (slope * e).clamp(max=span)


# overload -> (reach, roundoffs relative to the result, roundoffs relative to the argument or to 1)
FUNCTIONS: dict[str, tuple[Reach, float, float]] = {
    "exp.default": (_exp, 4, 0),
    "exp2.default": (lambda x, e, y: y * torch.expm1(e * math.log(2)), 4, 0),
    "expm1.default": (lambda x, e, y: torch.exp(x) * torch.expm1(e), 4, 0),
    "log.default": (_log, 4, 0),
    "log2.default": (lambda x, e, y: _log(x, e, y) / math.log(2), 4, 0),
    "log1p.default": (lambda x, e, y: _log(1 + x, e, y), 4, 0),
    "sqrt.default": (_sqrt, 4, 0),
    "rsqrt.default": (_rsqrt, 4, 0),
    "sin.default": (_bounded(1.0, 2.0), 4, 0),
    "cos.default": (_bounded(1.0, 2.0), 4, 0),
    "tanh.default": (_tanh, 4, 0),
    "sigmoid.default": (_sigmoid, 6, 0),
    "erf.default": (_erf, 4, 0),
    "silu.default": (_lipschitz(1.1), 8, 0),
    "softplus.default": (_lipschitz(1.0), 8, 0),
    # The slope is rounded too.
    "leaky_relu.default": (_lipschitz(1.0), 2, 0),
    "elu.default": (_lipschitz(1.0), 8, 1),
    "mish.default": (_lipschitz(1.1), 12, 0),
    # 1 + erf(x) cancels for negative x, so the roundoff is one of x.
    "gelu.default": (_lipschitz(1.13), 8, 8),
    "hardswish.default": (_lipschitz(1.5), 4, 4),
    "hardsigmoid.default": (_bounded(1 / 6, 1.0), 4, 4),
    "atan.default": (_lipschitz(1.0), 4, 0),
}


def _make(reach: Reach, relative: float, absolute: float) -> Rule:
    def bound(call: Call) -> torch.Tensor:
        x, error = wide(call["self"]), call.error(call["self"])
        found = torch.nan_to_num(reach(x, error, wide(call.result)), nan=math.inf, posinf=math.inf)
        # An infinite argument without error has no reach: e = 0 times an infinite slope.
        found = torch.where(error == 0, 0.0, found) + call.rounding(relative)
        magnitude = torch.where(torch.isfinite(x), x.abs(), 0.0)
        # A product with x makes that much of what an exponential loses when it underflows or its inverse overflows.
        return found + (absolute * call.accumulation + UNDERFLOW[accumulation_dtype(call.dtype)]) * magnitude

    return bound


def _parameters_allow(inner: Rule) -> Rule:
    """Slopes above hold for the default parameters, and grow with the parameters of the leaky and exponential ones."""

    def bound(call: Call) -> Any:
        grown = 1.0
        for name in ("negative_slope", "alpha", "scale", "input_scale", "beta"):
            grown = max(grown, abs(float(call.arguments.get(name) or 1.0)))
        return inner(call) * grown**2

    return bound


for _overload, _record in FUNCTIONS.items():
    _rule = _make(*_record)
    if _overload in ("leaky_relu.default", "elu.default", "softplus.default"):
        _rule = _parameters_allow(_rule)
    rule(_overload)(_rule)


def _half_width(overload: str, extra: Rule) -> None:
    """Add what torch's kernels for half-width floats lose beside the kernels for the others."""
    inner = RULES[overload]

    def bound(call: Call) -> Any:
        half = accumulation_dtype(call.dtype) != call.dtype
        return inner(call) + extra(call) if half else inner(call)

    rule(overload)(bound)


# The square root is rounded before its inverse is taken.
_half_width("rsqrt.default", lambda call: call.rounding())
# A rational approximation with an absolute error of 1.5e-7 (Abramowitz and Stegun, 7.1.26), which cancels near 0.
_half_width("erf.default", lambda call: 1.5e-7 + 4 * call.accumulation)

LOG_SIGMOID = _make(_lipschitz(1.0), 8, 0)


@rule("log_sigmoid_forward.default")
def _log_sigmoid(call: Call) -> Any:
    # The second result is a buffer for the backward pass.
    return LOG_SIGMOID(call), None


@rule("pow.Tensor_Scalar")
def _power(call: Call) -> torch.Tensor:
    x, exponent, error = wide(call["self"]), float(call["exponent"]), call.error(call["self"])
    far, near = x.abs() + error, (x.abs() - error).clamp(min=0.0)
    slope_at = far if exponent >= 1 else near
    slope = abs(exponent) * slope_at.pow(exponent - 1)
    reach = torch.where(error == 0, 0.0, torch.nan_to_num(slope * error, nan=math.inf, posinf=math.inf))
    return reach + call.rounding(1 if exponent in (1, 2) else 4)


@rule("pow.Scalar")
def _exponential(call: Call) -> torch.Tensor:
    error = call.error(call["exponent"])
    base = float(call["self"])
    if base <= 0:
        return torch.where(error == 0, call.rounding(4), math.inf)
    # The roundoff of the base is raised to the exponent, the argument of the exponential is rounded.
    spread = abs(math.log(base)) * wide(call["exponent"]).abs() * 2 * call.accumulation
    spread = spread + float(call.error(call["self"])) / base * wide(call["exponent"]).abs()
    return wide(call.value).abs() * torch.expm1(error * abs(math.log(base)) + spread) + call.rounding(4)


@rule("pow.Tensor_Tensor")
def _general_power(call: Call) -> torch.Tensor:
    x, p, ex, ep = wide(call["self"]), wide(call["exponent"]), call.error(call["self"]), call.error(call["exponent"])
    spread = (p.abs() + ep) * _log(x, ex, x) + ep * x.clamp(min=1e-300).log().abs()
    reach = torch.where((ex == 0) & (ep == 0), 0.0, wide(call.value).abs() * torch.expm1(spread))
    return torch.nan_to_num(reach, nan=math.inf, posinf=math.inf) + call.rounding(4)
