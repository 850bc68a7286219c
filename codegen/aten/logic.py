"""Comparisons, logic, bits and choices, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.aten.scalars import aligned, as_number, elementwise
from planish.codegen.dims import Expr
from planish.codegen.pointwise.dtypes import STORAGE, compute_dtype, is_nan
from planish.codegen.pointwise.expression import At, Call, Indices, Pointwise


def _compare(operator: Callable[[Expr, Expr], Expr]) -> Pointwise:
    return elementwise(lambda a, b, dtype: operator(as_number(a, dtype), as_number(b, dtype)), 2, promote=True)


def _differs(a: Expr, b: Expr, dtype: torch.dtype) -> Expr:
    """TIR's `!=` is false when either side is NaN, torch's is true."""
    differs = T.NE(as_number(a, dtype), as_number(b, dtype))
    if not dtype.is_floating_point:
        return differs
    return T.Or(differs, T.Or(is_nan(a, dtype), is_nan(b, dtype)))


def _logical(operator: Callable[..., Expr], count: int = 2) -> Pointwise:
    def rule(call: Call) -> list[At]:
        return [lambda indices: operator(*(call.value(a, torch.bool, indices) for a in call.arguments[:count]))]

    return aligned(rule)


def _bitwise(on_bools: Callable[..., Expr], on_integers: Callable[..., Expr], count: int = 2) -> Pointwise:
    def function(*arguments: Any) -> Expr:
        *values, dtype = arguments
        return (on_bools if dtype == torch.bool else on_integers)(*values)

    return elementwise(function, count)


def _differ(a: Expr, b: Expr) -> Expr:
    return T.NE(T.cast(a, "int8"), T.cast(b, "int8"))


def _is_infinite(x: Expr, dtype: torch.dtype) -> Expr:
    if not dtype.is_floating_point:
        return tirx.const(False, "bool")
    return T.EQ(T.abs(x), T.infinity(STORAGE[compute_dtype(dtype)]))


def _where(call: Call) -> list[At]:
    condition, x, y = call.arguments[:3]
    dtype = call.result.dtype

    def at(indices: Indices) -> Expr:
        picked = call.value(condition, torch.bool, indices)
        return T.Select(picked, call.value(x, dtype, indices), call.value(y, dtype, indices))

    return [at]


def _masked_fill(call: Call) -> list[At]:
    x, mask, value = call.arguments[:3]
    return _where(Call([mask, value, x], {}, call.results, call.symbols))


_COMPARISONS = {"eq": T.EQ, "lt": T.LT, "le": T.LE, "gt": T.GT, "ge": T.GE}
_WHERE, _FILL = aligned(_where), aligned(_masked_fill)
_AND, _OR = _bitwise(T.And, T.bitwise_and), _bitwise(T.Or, T.bitwise_or)
_XOR = _bitwise(_differ, T.bitwise_xor)

LOGIC: dict[str, Pointwise] = {
    **{f"{name}.{kind}": _compare(o) for name, o in _COMPARISONS.items() for kind in ("Tensor", "Scalar")},
    **{f"ne.{kind}": elementwise(_differs, 2, promote=True) for kind in ("Tensor", "Scalar")},
    "logical_not.default": _logical(T.Not, 1),
    "logical_and.default": _logical(T.And),
    "logical_or.default": _logical(T.Or),
    "logical_xor.default": _logical(_differ),
    "bitwise_not.default": _bitwise(T.Not, T.bitwise_not, 1),
    "bitwise_and.Tensor": _AND,
    "bitwise_and.Scalar": _AND,
    "bitwise_or.Tensor": _OR,
    "bitwise_or.Scalar": _OR,
    "bitwise_xor.Tensor": _XOR,
    "bitwise_xor.Scalar": _XOR,
    "__and__.Tensor": _AND,
    "__or__.Tensor": _OR,
    "isnan.default": elementwise(lambda x, dtype: is_nan(x, dtype), 1, promote=True),
    "isinf.default": elementwise(_is_infinite, 1, promote=True),
    "where.self": _WHERE,
    "where.Scalar": _WHERE,
    "where.ScalarSelf": _WHERE,
    "where.ScalarOther": _WHERE,
    "masked_fill.Scalar": _FILL,
    "masked_fill.Tensor": _FILL,
}
