"""Arithmetic of one and two operands, elementary functions and rounding, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.aten.scalars import aligned, elementwise, extremum, number
from planish.codegen.dims import Expr
from planish.codegen.math import hold
from planish.codegen.pointwise.dtypes import literal, rounded
from planish.codegen.pointwise.elementary import elementary, library
from planish.codegen.pointwise.expression import At, Call, Indices, Lazy, Pointwise
from planish.ir import UnsupportedError


def _scaled(function: Callable[[Expr, Expr], Expr], swap: bool = False) -> Pointwise:
    """x + alpha * y, or another function of x and alpha * y; swapped, of y and alpha * x."""

    def rule(call: Call) -> list[At]:
        x, y = call.arguments[:2]
        dtype, alpha = call.result.dtype, call.argument(2, "alpha", 1)

        def at(indices: Indices) -> Expr:
            a, b = call.value(x, dtype, indices), call.value(y, dtype, indices)
            if swap:
                a, b = b, a
            return rounded(function(a, b if alpha == 1 else b * literal(alpha, dtype)), dtype)

        return [at]

    return aligned(rule)


def _sum(a: Expr, b: Expr) -> Expr:
    return T.Or(a, b) if str(a.ty.dtype) == "bool" else a + b


def _product(a: Expr, b: Expr, dtype: torch.dtype) -> Expr:
    return T.And(a, b) if dtype == torch.bool else a * b


def _difference(a: Expr, b: Expr) -> Expr:
    return a - b


def _quotient(a: Expr, b: Expr, dtype: torch.dtype, mode: str | None) -> Expr:
    if mode is None:
        return a / b
    if not dtype.is_floating_point:
        return tirx.floordiv(a, b) if mode == "floor" else tirx.truncdiv(a, b)
    return T.trunc(a / b) if mode == "trunc" else _floor_quotient(a, b, dtype)


def _floor_quotient(a: Expr, b: Expr, dtype: torch.dtype) -> Expr:
    """floor of the exact quotient, which the rounded one may miss: from the exact remainder, as torch does."""
    zero, one = number(0, dtype), number(1, dtype)
    rest = hold(_fmod(a, b, dtype))
    quotient = (a - rest) / b
    exact = hold(T.Select(_opposite(rest, b, zero), quotient - one, quotient))
    down = hold(T.floor(exact))
    nearest = T.Select(exact - down > number(0.5, dtype), down + one, down)
    return T.Select(T.EQ(b, zero), a / b, nearest)


def _opposite(a: Expr, b: Expr, zero: Expr) -> Expr:
    """Whether one is negative and the other positive."""
    return T.Or(T.And(a < zero, zero < b), T.And(zero < a, b < zero))


def _fmod(a: Expr, b: Expr, dtype: torch.dtype) -> Expr:
    return library("fmod", a, b) if dtype.is_floating_point else tirx.truncmod(a, b)


def _remainder(a: Expr, b: Expr, dtype: torch.dtype) -> Expr:
    if not dtype.is_floating_point:
        return tirx.floormod(a, b)
    rest, zero = hold(_fmod(a, b, dtype)), number(0, dtype)
    return T.Select(_opposite(rest, b, zero), rest + b, rest)


def _divide(call: Call) -> list[At]:
    mode, dtype = call.keywords.get("rounding_mode"), call.result.dtype
    x, y = call.arguments[:2]

    def at(indices: Indices) -> Expr:
        a, b = hold(call.value(x, dtype, indices)), hold(call.value(y, dtype, indices))
        return rounded(_quotient(a, b, dtype, mode), dtype)

    return [at]


def _power(call: Call) -> list[At]:
    x, y = call.arguments[:2]
    dtype = call.result.dtype

    def at(indices: Indices) -> Expr:
        base = hold(call.value(x, dtype, indices))
        if not dtype.is_floating_point:
            return _integer_power(base, y, dtype)
        if not isinstance(y, Lazy) and y in (0.5, -0.5, 1, 2, 3, -1, -2):
            return rounded(_small_power(base, float(y), dtype), dtype)
        return rounded(library("pow", base, call.value(y, dtype, indices)), dtype)

    return [at]


def _small_power(x: Expr, exponent: float, dtype: torch.dtype) -> Expr:
    if exponent < 0:
        return number(1, dtype) / _small_power(x, -exponent, dtype)
    if exponent == 0.5:
        return T.sqrt(x)
    result = x
    for _ in range(int(exponent) - 1):
        result = result * x
    return result


def _integer_power(x: Expr, exponent: Any, dtype: torch.dtype) -> Expr:
    if not isinstance(exponent, int) or not 0 <= exponent <= 64:
        raise UnsupportedError(f"integers to the power {exponent} are not compiled: only constants from 0 to 64 are")
    result = literal(1, dtype)
    for _ in range(exponent):
        result = result * x
    return result


def _absolute(x: Expr, dtype: torch.dtype) -> Expr:
    if dtype in (torch.bool, torch.uint8):
        return x
    return T.abs(x) if dtype.is_floating_point else T.Select(x < literal(0, dtype), literal(0, dtype) - x, x)


def _negative(x: Expr, dtype: torch.dtype) -> Expr:
    return literal(-0.0, dtype) - x if dtype.is_floating_point else literal(0, dtype) - x


def _sign(x: Expr, dtype: torch.dtype) -> Expr:
    zero, one = literal(0, dtype), literal(1, dtype)
    negative = zero if dtype == torch.uint8 else literal(-1, dtype)
    return T.Select(x > zero, one, T.Select(x < zero, negative, zero))


def _to_integer(function: Callable[[Expr], Expr]) -> Pointwise:
    return elementwise(lambda x, dtype: function(x) if dtype.is_floating_point else x, 1)


def _cast(call: Call) -> list[At]:
    return [lambda indices: call.value(call.arguments[0], call.result.dtype, indices)]


CAST = aligned(_cast)
_ADD, _SUB, _RSUB = _scaled(_sum), _scaled(_difference), _scaled(_difference, swap=True)
_MUL, _DIV, _POW = elementwise(_product, 2), aligned(_divide), aligned(_power)
_FLOOR_DIVIDE = elementwise(lambda a, b, dtype: _quotient(a, b, dtype, "floor"), 2)
_REMAINDER, _FMOD = elementwise(_remainder, 2), elementwise(_fmod, 2)
_MAXIMUM = elementwise(lambda a, b, dtype: extremum(True, a, b, dtype), 2)
_MINIMUM = elementwise(lambda a, b, dtype: extremum(False, a, b, dtype), 2)
_FUNCTIONS = (
    "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 sigmoid sin sinh tan tanh"
).split()


def _function(name: str) -> Pointwise:
    return elementwise(lambda x, dtype: elementary(name, x), 1)


ARITHMETIC: dict[str, Pointwise] = {
    "abs.default": elementwise(_absolute, 1),
    "add.Scalar": _ADD,
    "add.Tensor": _ADD,
    "sub.Scalar": _SUB,
    "sub.Tensor": _SUB,
    "rsub.Scalar": _RSUB,
    "rsub.Tensor": _RSUB,
    "mul.Scalar": _MUL,
    "mul.Tensor": _MUL,
    "div.Scalar": _DIV,
    "div.Scalar_mode": _DIV,
    "div.Tensor": _DIV,
    "div.Tensor_mode": _DIV,
    "true_divide.Tensor": _DIV,
    "floor_divide.default": _FLOOR_DIVIDE,
    "floor_divide.Scalar": _FLOOR_DIVIDE,
    "remainder.Scalar": _REMAINDER,
    "remainder.Tensor": _REMAINDER,
    "fmod.Scalar": _FMOD,
    "fmod.Tensor": _FMOD,
    "pow.Scalar": _POW,
    "pow.Tensor_Scalar": _POW,
    "pow.Tensor_Tensor": _POW,
    "maximum.default": _MAXIMUM,
    "minimum.default": _MINIMUM,
    "max.other": _MAXIMUM,
    "min.other": _MINIMUM,
    "neg.default": elementwise(_negative, 1),
    "reciprocal.default": elementwise(lambda x, dtype: number(1, dtype) / x, 1),
    "square.default": elementwise(lambda x, dtype: x * x, 1),
    "sqrt.default": elementwise(lambda x, dtype: T.sqrt(x), 1),
    "rsqrt.default": elementwise(lambda x, dtype: number(1, dtype) / T.sqrt(x), 1),
    "sign.default": elementwise(_sign, 1),
    "floor.default": _to_integer(T.floor),
    "ceil.default": _to_integer(T.ceil),
    "trunc.default": _to_integer(T.trunc),
    "round.default": _to_integer(T.nearbyint),
    "atan2.default": elementwise(lambda a, b, dtype: library("atan2", a, b), 2),
    **{f"{name}.default": _function(name) for name in _FUNCTIONS},
    "to.dtype": CAST,
    "to.dtype_layout": CAST,
    "to.other": CAST,
    "_to_copy.default": CAST,
    "type_as.default": CAST,
}
