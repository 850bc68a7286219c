"""What the tables of elementwise operators share: how values are promoted, literals, NaN-aware extrema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr
from planish.codegen.math import hold
from planish.codegen.pointwise.dtypes import compute_dtype, is_nan, literal, rounded
from planish.codegen.pointwise.expression import At, Call, Indices, Lazy, Pointwise, Rule

# From values in their compute dtype, and that logical dtype, to a value.
Scalar = Callable[..., Expr]


def promoted(arguments: list[Any]) -> torch.dtype:
    """The dtype in which torch computes on tensors and numbers together."""
    dummies = [torch.empty([1] * a.type.rank, dtype=a.type.dtype) if isinstance(a, Lazy) else a for a in arguments]
    dummies = [a if isinstance(a, (torch.Tensor, bool, int, float)) else 1 for a in dummies]
    return torch.result_type(dummies[0], dummies[-1])


def elementwise(function: Scalar, count: int, *, promote: bool = False) -> Pointwise:
    """`function(*values, dtype)` on `count` arguments, in the result's dtype or, if `promote`, in their common one."""

    def rule(call: Call) -> list[At]:
        arguments = list(call.arguments[:count])
        dtype = promoted(arguments) if promote else call.result.dtype

        def at(indices: Indices) -> Expr:
            values = [hold(call.value(a, dtype, indices)) for a in arguments]
            return rounded(function(*values, dtype), call.result.dtype)

        return [at]

    return aligned(rule)


def aligned(rule: Rule) -> Pointwise:
    return Pointwise(rule, aligned=True)


def number(value: float, dtype: torch.dtype) -> Expr:
    """A constant in the compute dtype of `dtype`, not rounded to `dtype` itself."""
    return literal(value, compute_dtype(dtype))


def as_number(x: Expr, dtype: torch.dtype) -> Expr:
    """A bool as an integer; comparisons and extrema of TIR want numbers."""
    return T.cast(x, "int8") if dtype == torch.bool else x


def extremum(larger: bool, a: Expr, b: Expr, dtype: torch.dtype) -> Expr:
    """The larger or the smaller of two values; NaN if either is, as in torch."""
    if dtype == torch.bool:
        return T.Or(a, b) if larger else T.And(a, b)
    picked = (T.max if larger else T.min)(a, b)
    if not dtype.is_floating_point:
        return picked
    return T.Select(is_nan(a, dtype), a, T.Select(is_nan(b, dtype), b, picked))
