"""Kernels that walk one axis of a tensor in order: running sums and products, positions of extrema, the k largest.

The tensor is seen as [outer, axis, inner]. Threads share out the outer and inner elements; each walks its axis alone, so
its bits depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr
from planish.codegen.kernels import emit
from planish.codegen.math import hold
from planish.codegen.pointwise.dtypes import STORAGE, compute_dtype, convert, is_nan, literal, loaded, stored

PARALLEL_ELEMENTS = 1 << 14
SCANS = ("sum", "product")
ORDERS = ("largest", "smallest")


@dataclass(frozen=True)
class Scan:
    """Running sums or products along an axis: `dtype` in, `result` out, accumulated in the result's compute dtype."""

    kind: str
    dtype: torch.dtype
    result: torch.dtype


@dataclass(frozen=True)
class Pick:
    """The `count` largest or smallest elements along an axis, in order, the lower index first among equals; NaN counts as
    larger than all. Values, indices, or both are written."""

    order: str
    dtype: torch.dtype
    count: int
    values: bool = True
    indices: bool = True


class _Axes:
    """[outer, axis, inner], and the loop over all that lies beside the axis."""

    def __init__(self) -> None:
        self.outer, self.axis, self.inner = (emit.symbol(name) for name in ("outer", "axis", "inner"))

    def argument(self, name: str, dtype: torch.dtype, axis: Expr | int | None = None) -> Expr:
        extent = self.axis if axis is None else axis
        return emit.argument(name, (self.outer, extent, self.inner), STORAGE[dtype])

    def each(self, body: Callable[[Expr, Expr], None]) -> None:
        def walk(task: Expr) -> None:
            body(emit.bind("o", task // self.inner), emit.bind("i", task % self.inner))

        tasks = self.outer * self.inner
        emit.some_tasks("task", tasks, tasks * self.axis < PARALLEL_ELEMENTS, walk)


def scan(config: Scan) -> Any:
    """The PrimFunc `(x [outer, axis, inner], y [outer, axis, inner])` of `config`."""
    wide = compute_dtype(config.result)

    def body() -> None:
        axes = _Axes()
        x, y = axes.argument("x", config.dtype), axes.argument("y", config.result)

        def walk(o: Expr, i: Expr) -> None:
            running = emit.scratch("running", 1, STORAGE[wide])
            T.buffer_store(running, literal(0 if config.kind == "sum" else 1, wide), [0])
            with emit.loop("n", axes.axis) as n:
                value = convert(loaded(x[o, n, i], config.dtype), config.dtype, wide)
                after = running[0] + value if config.kind == "sum" else running[0] * value
                T.buffer_store(running, after, [0])
                T.buffer_store(y, stored(running[0], config.result), [o, n, i])

        axes.each(walk)

    return emit.prim_func(f"running_{config.kind}", body)


def pick(config: Pick) -> Any:
    """The PrimFunc `(x [outer, axis, inner], [values [outer, count, inner]], [indices int64 of that shape])`."""

    def body() -> None:
        axes = _Axes()
        x = axes.argument("x", config.dtype)
        values = axes.argument("values", config.dtype, config.count) if config.values else None
        indices = axes.argument("indices", torch.int64, config.count) if config.indices else None

        def walk(o: Expr, i: Expr) -> None:
            # What was picked last: whatever is left comes behind it.
            last = emit.scratch("last", 1, "int64") if config.count > 1 else None
            if last is not None:
                T.buffer_store(last, T.int64(-1), [0])
            with emit.loop("k", config.count) as k:
                best = emit.scratch("best", 1, "int64")
                T.buffer_store(best, T.int64(-1), [0])
                with emit.loop("n", axes.axis) as n:

                    def compare(n: Expr = n) -> None:
                        candidate = _value(x[o, n, i], config.dtype)
                        leader = _value(x[o, T.max(best[0], emit.index(0)), i], config.dtype)
                        better = T.Or(best[0] < 0, _beats(candidate, leader, config))
                        emit.branch(better, lambda: T.buffer_store(best, n, [0]))

                    if last is None:
                        compare()
                    else:
                        emit.branch(_left(x, (o, i), n, last[0], config), compare)
                place = T.max(best[0], emit.index(0))
                if values is not None:
                    T.buffer_store(values, x[o, place, i], [o, k, i])
                if indices is not None:
                    T.buffer_store(indices, place, [o, k, i])
                if last is not None:
                    T.buffer_store(last, place, [0])

        axes.each(walk)

    return emit.prim_func(f"{config.order}", body)


def _left(x: Expr, line: tuple[Expr, Expr], n: Expr, last: Expr, config: Pick) -> Expr:
    """Whether element n has not been picked when element `last` (none where negative) was picked last."""
    o, i = line
    value = _value(x[o, n, i], config.dtype)
    picked = _value(x[o, T.max(last, emit.index(0)), i], config.dtype)
    equal = T.And(tirx.Not(_beats(value, picked, config)), tirx.Not(_beats(picked, value, config)))
    return T.Or(last < 0, T.Or(_beats(picked, value, config), T.And(equal, n > last)))


def _value(element: Expr, dtype: torch.dtype) -> Expr:
    value = loaded(element, dtype)
    return hold(T.cast(value, "int8") if dtype == torch.bool else value)


def _beats(a: Expr, b: Expr, config: Pick) -> Expr:
    """Whether a comes before b; equal elements do not."""
    before = a > b if config.order == "largest" else a < b
    if not config.dtype.is_floating_point:
        return before
    a_nan, b_nan = is_nan(a, config.dtype), is_nan(b, config.dtype)
    if config.order == "largest":
        return T.Or(T.And(a_nan, tirx.Not(b_nan)), T.And(before, tirx.Not(b_nan)))
    return T.Or(T.And(b_nan, tirx.Not(a_nan)), before)
