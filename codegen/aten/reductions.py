"""ATen operators that fold axes: sums, means, extrema, any and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.aten.scalars import extremum
from planish.codegen.dims import Expr, product
from planish.codegen.pointwise.dtypes import STORAGE, compute_dtype, convert, literal, rounded
from planish.codegen.pointwise.expression import Call, Lazy
from planish.codegen.pointwise.reduction import Fold, FoldRule


def _axes(call: Call, position: int = 1) -> tuple[int, ...]:
    """The folded axes: all of them when none is named."""
    operand = call.arguments[0]
    assert isinstance(operand, Lazy)
    given = call.argument(position, "dim") if position >= 0 else None
    if given is None or given == []:
        return tuple(range(operand.type.rank))
    chosen = given if isinstance(given, list) else [given]
    return tuple(sorted(int(a) % operand.type.rank for a in chosen))


def _sum(mean: bool, position: int) -> FoldRule:
    def rule(call: Call) -> Fold:
        source, result = call.arguments[0].type.dtype, call.result.dtype
        dtype, axes = compute_dtype(result), _axes(call, position)
        count = call.size(product(call.arguments[0].type.shape[a] for a in axes))

        def finish(total: Expr) -> Expr:
            return rounded(total / T.cast(count, STORAGE[dtype]) if mean else total, result)

        return Fold(axes, dtype, literal(0, dtype), lambda x: convert(x, source, dtype), lambda a, b: a + b, finish)

    return rule


def _product(position: int) -> FoldRule:
    def rule(call: Call) -> Fold:
        source, result = call.arguments[0].type.dtype, call.result.dtype
        dtype = compute_dtype(result)
        convert_in: Callable[[Expr], Expr] = lambda x: convert(x, source, dtype)  # noqa: E731
        finish: Callable[[Expr], Expr] = lambda total: rounded(total, result)  # noqa: E731
        return Fold(_axes(call, position), dtype, literal(1, dtype), convert_in, lambda a, b: a * b, finish)

    return rule


def _extreme(larger: bool, position: int) -> FoldRule:
    def rule(call: Call) -> Fold:
        dtype = compute_dtype(call.arguments[0].type.dtype)
        initial = _lowest(dtype) if larger else _highest(dtype)
        keep: Callable[[Expr], Expr] = lambda x: x  # noqa: E731
        return Fold(_axes(call, position), dtype, initial, keep, lambda a, b: extremum(larger, a, b, dtype), keep)

    return rule


def _lowest(dtype: torch.dtype) -> Expr:
    if dtype.is_floating_point:
        return -T.infinity(STORAGE[dtype])
    return tirx.min_value(STORAGE[dtype])


def _highest(dtype: torch.dtype) -> Expr:
    if dtype.is_floating_point:
        return T.infinity(STORAGE[dtype])
    return tirx.max_value(STORAGE[dtype])


def _truth(every: bool, position: int) -> FoldRule:
    """any and all, folded as small integers: vectors of bool are no arithmetic type."""

    def rule(call: Call) -> Fold:
        source = call.arguments[0].type.dtype

        def element(x: Expr) -> Expr:
            return T.cast(convert(x, source, torch.bool), "int32")

        start = literal(1 if every else 0, torch.int32)
        combine: Any = T.min if every else T.max
        return Fold(_axes(call, position), torch.int32, start, element, combine, lambda total: T.NE(total, T.int32(0)))

    return rule


REDUCTIONS: dict[str, FoldRule] = {
    "sum.default": _sum(False, -1),
    "sum.dim_IntList": _sum(False, 1),
    "mean.default": _sum(True, -1),
    "mean.dim": _sum(True, 1),
    "prod.default": _product(-1),
    "prod.dim_int": _product(1),
    "amax.default": _extreme(True, 1),
    "amin.default": _extreme(False, 1),
    "max.default": _extreme(True, -1),
    "min.default": _extreme(False, -1),
    "any.default": _truth(False, -1),
    "any.dim": _truth(False, 1),
    "any.dims": _truth(False, 1),
    "all.default": _truth(True, -1),
    "all.dim": _truth(True, 1),
    "all.dims": _truth(True, 1),
}
