"""Pooling: each element folds a window of its operand's last axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.aten.scalars import extremum, number
from planish.codegen.dims import Expr
from planish.codegen.kernels import emit
from planish.codegen.math import hold
from planish.codegen.pointwise.dtypes import STORAGE, compute_dtype, rounded
from planish.codegen.pointwise.expression import At, Call, Indices, Pointwise


def _pair(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


class _Window:
    """The window of one result element: the operand's elements that it folds, some of which may be padding."""

    def __init__(self, call: Call, indices: Indices, settings: Sequence[Sequence[int]]) -> None:
        self.x, self.call, self.indices = call.arguments[0], call, indices
        self.kernel, self.stride, self.padding, self.dilation = settings
        self.count = len(self.kernel)
        self.sizes = [call.size(d) for d in self.x.type.shape[-self.count :]]
        self.starts = [
            hold(i * s - p) for i, s, p in zip(indices[len(indices) - self.count :], self.stride, self.padding)
        ]

    def each(self, step: Callable[[Expr, Expr], None]) -> None:
        """Emit `step(inside, element)` for each place; outside, the element is one that exists, and means nothing."""
        for offsets in product(*(range(k) for k in self.kernel)):
            places = [s + o * d for s, o, d in zip(self.starts, offsets, self.dilation)]
            inside = tirx.const(True, "bool")
            for place, size, padded in zip(places, self.sizes, self.padding):
                low = T.And(place >= 0, place < size) if padded else place < size
                inside = T.And(inside, low)
            # Clamped and not guarded: a load without a branch leaves the loop to be made vectors.
            safe = [T.max(T.min(p, size - 1), emit.index(0)) for p, size in zip(places, self.sizes)]
            step(inside, self.x.at((*self.indices[: len(self.indices) - self.count], *safe)))


def _settings(call: Call, count: int, dilated: bool) -> list[list[int]]:
    kernel = _pair(call.argument(1, "kernel_size"), count)
    stride = call.argument(2, "stride")
    stride = _pair(stride, count) if stride else kernel
    padding = _pair(call.argument(3, "padding", 0), count)
    dilation = _pair(call.argument(4, "dilation", 1), count) if dilated else [1] * count
    return [kernel, stride, padding, dilation]


def _max_pool(count: int) -> Callable[[Call], list[At]]:
    def rule(call: Call) -> list[At]:
        dtype = call.result.dtype
        settings = _settings(call, count, dilated=True)

        def at(indices: Indices) -> Expr:
            window = _Window(call, indices, settings)
            lowest = -T.infinity(STORAGE[compute_dtype(dtype)]) if dtype.is_floating_point else T.int64(-(1 << 62))
            best = [hold(lowest)]

            def step(inside: Expr, element: Expr) -> None:
                best[0] = hold(T.Select(inside, extremum(True, best[0], hold(element), dtype), best[0]))

            window.each(step)
            return best[0]

        return [at]

    return rule


def _average_pool(count: int) -> Callable[[Call], list[At]]:
    def rule(call: Call) -> list[At]:
        dtype = call.result.dtype
        settings = _settings(call, count, dilated=False)
        include_padding, divisor = call.argument(5, "count_include_pad", True), call.argument(6, "divisor_override")

        def at(indices: Indices) -> Expr:
            window = _Window(call, indices, settings)
            total = [hold(number(0, dtype))]

            def step(inside: Expr, element: Expr) -> None:
                total[0] = hold(T.Select(inside, total[0] + element, total[0]))

            window.each(step)
            if divisor is not None:
                return rounded(total[0] / number(divisor, dtype), dtype)
            return rounded(total[0] / _members(window, include_padding, dtype), dtype)

        return [at]

    return rule


def _members(window: _Window, include_padding: bool, dtype: torch.dtype) -> Expr:
    """How many places a window averages over: never those beyond the padding."""
    count = emit.index(1)
    for start, size, kernel, padding in zip(window.starts, window.sizes, window.kernel, window.padding):
        reach = padding if include_padding else 0
        count = count * (T.min(start + kernel, size + reach) - T.max(start, emit.index(-reach)))
    return T.cast(count, STORAGE[compute_dtype(dtype)])


def _adaptive_average(count: int) -> Callable[[Call], list[At]]:
    """Window i of n over s elements runs from floor(i * s / n) to ceil((i + 1) * s / n)."""

    def rule(call: Call) -> list[At]:
        x, dtype = call.arguments[0], call.result.dtype
        outs = [call.size(d) for d in call.result.shape[-count:]]
        ins = [call.size(d) for d in x.type.shape[-count:]]

        def at(indices: Indices) -> Expr:
            outer, own = indices[: len(indices) - count], indices[len(indices) - count :]
            starts = [hold(tirx.floordiv(i * s, n)) for i, s, n in zip(own, ins, outs)]
            sizes = [hold(emit.ceil_div((i + 1) * s, n) - start) for i, s, n, start in zip(own, ins, outs, starts)]
            total = emit.scratch("total", 1, STORAGE[compute_dtype(dtype)])
            T.buffer_store(total, number(0, dtype), [0])
            _nested(starts, sizes, [], lambda places: T.buffer_store(total, total[0] + x.at((*outer, *places)), [0]))
            members = emit.index(1)
            for size in sizes:
                members = members * size
            return rounded(total[0] / T.cast(members, STORAGE[compute_dtype(dtype)]), dtype)

        return [at]

    return rule


def _nested(
    starts: Sequence[Expr], sizes: Sequence[Expr], places: list[Expr], body: Callable[[list[Expr]], None]
) -> None:
    if not starts:
        body(places)
        return
    with emit.loop("w", sizes[0]) as w:
        _nested(starts[1:], sizes[1:], [*places, starts[0] + w], body)


WINDOWS: dict[str, Pointwise] = {
    "max_pool1d.default": Pointwise(_max_pool(1), whole=(0,)),
    "max_pool2d.default": Pointwise(_max_pool(2), whole=(0,)),
    "avg_pool1d.default": Pointwise(_average_pool(1), whole=(0,)),
    "avg_pool2d.default": Pointwise(_average_pool(2), whole=(0,)),
    "adaptive_avg_pool1d.default": Pointwise(_adaptive_average(1), whole=(0,)),
    "adaptive_avg_pool2d.default": Pointwise(_adaptive_average(2), whole=(0,)),
    "_adaptive_avg_pool2d.default": Pointwise(_adaptive_average(2), whole=(0,)),
}
