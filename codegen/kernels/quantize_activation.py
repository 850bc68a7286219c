"""Dynamic quantisation of each row: the kernel of the op ``quantize_activation``, for any number of rows.

``scale[m] = max over k of |x[m, k]| / largest`` and ``codes[m, k] = x[m, k] / scale[m]`` rounded to the nearest integer, ties
to even, then clamped to [-largest, largest]; both quotients are float32 divisions. A row of zeros (or so small that its scale
is zero) has scale 0 and codes 0. A row with an infinity or a NaN keeps it in its scale and has codes 0, so whatever is
computed from the row is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.tiles.float import Expr, FloatTile

Load: TypeAlias = "Callable[[Expr | int, int], Expr]"

LARGEST_CODE = 127
"""Of eight bits."""
PARALLEL_ELEMENTS = 1 << 16
"""Fewer elements than this are quantised sooner than a second thread wakes up."""


@dataclass(frozen=True)
class QuantizeActivation:
    """One quantisation kernel: rows of ``features`` float32 elements, on the vectors of ``tile``.

    Attributes:
        largest: code, 1 to 127; codes are int8 whatever it is.
    """

    features: int
    tile: FloatTile
    largest: int = LARGEST_CODE

    def __post_init__(self) -> None:
        if not 1 <= self.largest <= LARGEST_CODE:
            raise ValueError(f"a largest code of {self.largest} is not supported: it is from 1 to {LARGEST_CODE}")
        if self.features < 1:
            raise ValueError(f"rows of {self.features} features cannot be quantised: at least one is needed")


class RowQuantizer:
    """The quantisation of rows into codes (M, K) and scales (M, 1), wherever their elements lie."""

    def __init__(self, config: QuantizeActivation, codes: Expr, scale: Expr) -> None:
        self.features, self.tile, self.largest = config.features, config.tile, config.largest
        # A vector's worth of running maxima; the elements behind the last whole vector are taken one by one.
        self.vectors, self.rest = divmod(config.features, config.tile.lanes)
        self.codes, self.scale = codes, scale

    def row(self, row: Expr, load: Load) -> None:
        """Emit the codes and the scale of a row of which ``load(column, count)`` gives elements."""
        scale = T.bind(self._largest(load) / T.float32(self.largest))
        T.buffer_store(self.scale, scale, [row, 0])
        usable = T.And(T.float32(0) < scale, scale < T.infinity("float32"))
        emit.branch(usable, lambda: self._quotients(row, scale, load), lambda: self._zeros(row))

    def _largest(self, load: Load) -> Expr:
        """max |x| of a row. Magnitudes compare as their bits do, which orders NaN last and needs no float rules."""
        lanes = self.tile.lanes
        maxima = emit.scratch("maxima", lanes, "int32")
        emit.store(maxima, [0], T.broadcast(T.int32(0), lanes), lanes)
        with emit.loop("vector", self.vectors) as vector:
            magnitude = self._magnitude(load(vector * lanes, lanes), lanes)
            emit.store(maxima, [0], T.max(emit.load(maxima, [0], lanes), magnitude), lanes)
        largest = maxima[0]
        for lane in range(1, lanes):
            largest = T.max(largest, maxima[lane])
        for k in range(self.features - self.rest, self.features):
            largest = T.max(largest, self._magnitude(load(k, 1), 1))
        return T.bind(T.reinterpret("float32", largest))

    def _magnitude(self, value: Expr, lanes: int) -> Expr:
        """The bits of ``|value|``."""
        vector = f"x{lanes}" if lanes > 1 else ""
        mask = T.int32(0x7FFFFFFF)
        return T.bitwise_and(T.reinterpret(f"int32{vector}", value), T.broadcast(mask, lanes) if lanes > 1 else mask)

    def _quotients(self, row: Expr, scale: Expr, load: Load) -> None:
        lanes = self.tile.lanes
        with emit.loop("vector", self.vectors) as vector:
            quotient = load(vector * lanes, lanes) / T.broadcast(scale, lanes)
            emit.store(self.codes, [row, vector * lanes], self._code(quotient, lanes), lanes)
        for k in range(self.features - self.rest, self.features):
            T.buffer_store(self.codes, self._code(load(k, 1) / scale, 1), [row, k])

    def _code(self, quotient: Expr, lanes: int) -> Expr:
        """A finite quotient, rounded and clamped, as int8."""
        vector = f"x{lanes}" if lanes > 1 else ""
        rounded = current().round_even(quotient)
        low, high = (T.float32(sign * self.largest) for sign in (-1, 1))
        if lanes > 1:
            low, high = T.broadcast(low, lanes), T.broadcast(high, lanes)
        return T.cast(T.cast(T.max(T.min(rounded, high), low), f"int32{vector}"), f"int8{vector}")

    def _zeros(self, row: Expr) -> None:
        with emit.loop("k", self.features) as k:
            T.buffer_store(self.codes, T.int8(0), [row, k])


def quantize_activation(config: QuantizeActivation) -> Any:
    """The PrimFunc ``(x (M, K) float32, codes (M, K) int8, scale (M, 1) float32)`` of ``config``; M is any number."""
    features = config.features

    def body() -> None:
        rows = emit.symbol("rows")
        x = emit.argument("x", (rows, features), "float32")
        codes = emit.argument("codes", (rows, features), "int8")
        quantizer = RowQuantizer(config, codes, emit.argument("scale", (rows, 1), "float32"))

        def at_row(row: Expr) -> None:
            quantizer.row(row, lambda column, count: emit.load(x, [row, column], count))

        emit.some_tasks("row", rows, rows < emit.ceil_div(PARALLEL_ELEMENTS, features), at_row)

    return emit.prim_func("quantize_activation", body)
