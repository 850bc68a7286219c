"""Elementwise arithmetic."""

from __future__ import annotations

import math

import torch

from planish.ir.bounds.mode import Call, rule, wide


@rule("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Tensor", "rsub.Scalar")
def _sum(call: Call) -> torch.Tensor:
    alpha = call.arguments.get("alpha", 1)
    first, second = call["self"], call["other"]
    if "rsub" in str(call.function):
        first, second = second, first
    scaled = abs(alpha) * call.error(second)
    extra = call.unit * (wide(second) * alpha).abs() if abs(alpha) != 1 else 0.0
    error: torch.Tensor = call.error(first) + scaled + extra + call.rounding()
    return error


@rule("mul.Tensor", "mul.Scalar")
def _product(call: Call) -> torch.Tensor:
    a, b = call["self"], call["other"]
    return product_error(wide(a), call.error(a), wide(b), call.error(b)) + call.rounding()


def product_error(a: torch.Tensor, ea: torch.Tensor, b: torch.Tensor, eb: torch.Tensor) -> torch.Tensor:
    """|a| eb + ea |b| + ea eb, where 0 times infinity is 0: an exact factor of 0, or an exact infinite one."""
    error = torch.zeros((), dtype=torch.float64)
    for factor, other in ((a.abs(), eb), (ea, b.abs()), (ea, eb)):
        error = error + torch.nan_to_num(factor * other, nan=0.0, posinf=math.inf)
    return error


@rule("div.Tensor", "div.Scalar")
def _quotient(call: Call) -> torch.Tensor:
    a, b = call["self"], call["other"]
    return _quotient_error(call, wide(call.value), call.error(a), wide(b), call.error(b)) + call.rounding()


def _quotient_error(
    call: Call, quotient: torch.Tensor, ea: torch.Tensor, b: torch.Tensor, eb: torch.Tensor
) -> torch.Tensor:
    nearest = b.abs() - eb
    numerator = ea + torch.nan_to_num(quotient.abs() * eb, nan=0.0, posinf=math.inf)
    return torch.where((nearest > 0) | ((numerator == 0) & (eb == 0)), numerator / nearest.clamp(min=1e-300), math.inf)


def _steps(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """The quotient of two operands and how far its integer part can be off."""
    a, b = wide(call["self"]), wide(call["other"])
    ea, eb = call.error(call["self"]), call.error(call["other"])
    quotient = a / b
    slack = _quotient_error(call, quotient, ea, b, eb)
    toward_zero = call.arguments.get("rounding_mode") == "trunc" or "fmod" in call.function._schema.name
    step = torch.trunc if toward_zero else torch.floor
    kept = step(quotient)
    off = torch.maximum((step(quotient + slack) - kept).abs(), (step(quotient - slack) - kept).abs())
    # On exact operands torch's integer part is that of the exact quotient.
    return quotient, torch.where(slack == 0, 0.0, torch.nan_to_num(off, nan=math.inf, posinf=math.inf))


@rule("div.Tensor_mode", "div.Scalar_mode", "floor_divide.default")
def _stepped(call: Call) -> torch.Tensor:
    if call.arguments.get("rounding_mode", "floor") is None:
        quotient: torch.Tensor = _quotient(call)
        return quotient
    # torch divides what is left of a after its remainder, then takes the nearest integer: two roundings in the dtype.
    steps, rounded = _steps(call)[1], call.rounding(2) + call.rounding()
    error: torch.Tensor = steps + call.rounding() + torch.where(rounded >= 0.5, 0.5 + rounded, 0.0)
    return error


@rule("remainder.Tensor", "remainder.Scalar", "fmod.Tensor", "fmod.Scalar")
def _remainder(call: Call) -> torch.Tensor:
    """a - b n for an integer n: off by what a and b are, and unbounded where n could be another."""
    quotient, off = _steps(call)
    error = call.error(call["self"]) + (quotient.abs() + 1) * call.error(call["other"]) + call.rounding(2)
    return torch.where(off == 0, error, math.inf)


@rule("neg.default", "abs.default", "positive.default")
def _isometry(call: Call) -> torch.Tensor:
    return call.error(call["self"])


@rule("square.default")
def _square(call: Call) -> torch.Tensor:
    x, error = wide(call["self"]), call.error(call["self"])
    return product_error(x, error, x, error) + call.rounding()


@rule("reciprocal.default")
def _reciprocal(call: Call) -> torch.Tensor:
    x = call["self"]
    zero = torch.zeros((), dtype=torch.float64)
    return _quotient_error(call, wide(call.value), zero, wide(x), call.error(x)) + call.rounding()


@rule("floor.default", "ceil.default", "round.default", "trunc.default", "sign.default")
def _step(call: Call) -> torch.Tensor:
    """A monotone step moves no further than the steps at both ends of the interval."""
    x, error = wide(call["self"]), call.error(call["self"])
    ends = [call.function(end) - wide(call.value) for end in (x + error, x - error)]
    return torch.maximum(ends[0].abs(), ends[1].abs())


@rule("addcmul.default")
def _addcmul(call: Call) -> torch.Tensor:
    a, b = call["tensor1"], call["tensor2"]
    scale = abs(call["value"])
    product = scale * product_error(wide(a), call.error(a), wide(b), call.error(b))
    inner: torch.Tensor = (wide(a) * wide(b)).abs() * scale * 2 * call.accumulation
    error: torch.Tensor = call.error(call["self"]) + product + inner + call.rounding()
    return error
