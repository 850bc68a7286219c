"""The Hadamard transform of rows, alone or with their quantisation behind it in one kernel.

A row is cut into blocks of K P elements, P a power of two. Sums and differences in pairs over the elements of each P run
first, from neighbours on: within a vector by a permutation and a fused multiply-add with 1 or -1, then between vectors, as
many at a time as registers hold. Then each column of K elements is multiplied by the matrix of order K, from a table of its
ones, in tiles of registers, and everything once by 1 / sqrt(K P). Every sum is of its terms in order, rounded once a term, so
with K = 1 the bits are those of the op.
"""

from __future__ import annotations

import math as numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.quantize_activation import QuantizeActivation, RowQuantizer
from planish.codegen.kernels.vectors import Row, padded
from planish.codegen.tiles.float import Expr, FloatTile
from planish.ir.hadamard import core_of, hadamard

SERIAL_WORK = 1 << 19
"""Operations that one thread does while others wake up."""
TILE_ROWS = 6
"""Rows of the matrix of order K in one tile of registers."""
TILE_VECTORS = 4
"""Vectors of its columns in one tile, at most; fewer where registers are."""


@dataclass(frozen=True)
class Hadamard:
    """One kernel.

    Attributes:
        width: elements in a row.
        block: elements that are transformed together; divides the width.
        tile: the machine's vectors.
        quantize: what quantises the transformed row, which then is no result; its features are `width`.
    """

    width: int
    block: int
    tile: FloatTile
    quantize: QuantizeActivation | None = None

    def __post_init__(self) -> None:
        if core_of(self.block) is None or self.width < 1 or self.width % self.block:
            raise ValueError(f"rows of {self.width} elements have no transform in blocks of {self.block}")

    @property
    def core(self) -> int:
        """K."""
        return core_of(self.block) or 1

    @property
    def power(self) -> int:
        """P."""
        return self.block // self.core

    @property
    def factor(self) -> float:
        return 1 / numbers.sqrt(self.block)

    @property
    def work(self) -> int:
        """Operations on one row."""
        sums = self.power.bit_length() - 1 + (2 * self.core if self.core > 1 else 0)
        return self.width * (sums + 1)


def table(core: int) -> torch.Tensor:
    """The matrix of order K as kernels read it: float32 [K, K], element (l, k) the factor of input l in sum k."""
    return hadamard(core).T.contiguous().to(torch.float32)


class _Kernel:
    """The arguments of one kernel and the parts of its body."""

    def __init__(self, config: Hadamard) -> None:
        self.config, self.tile = config, config.tile
        lanes = self.lanes = config.tile.lanes
        self.size = padded(config.width, lanes) + lanes
        self.rows = emit.symbol("rows")
        shape = (self.rows, config.width)
        self.x = emit.argument("x", shape, "float32")
        self.table = emit.argument("table", (config.core, config.core), "float32") if config.core > 1 else None
        if config.quantize is None:
            self.y = emit.argument("y", shape, "float32")
        else:
            self.codes = emit.argument("codes", shape, "int8")
            self.scales = emit.argument("scale", (self.rows, 1), "float32")

    def body(self) -> None:
        # One row is one task, which waits for no other thread.
        few = max(2, -(-SERIAL_WORK // self.config.work))
        emit.some_tasks("row", self.rows, self.rows < few, self._row)

    def _row(self, row: Expr) -> None:
        config, tile = self.config, self.tile
        line = emit.scratch("line", self.size)
        emit.store(line, [self.size - self.lanes], tile.broadcast(T.float32(0)), self.lanes)
        self._neighbours(row, line)
        stride = min(self._most, max(1, config.power // self.lanes)) * self.lanes
        while stride < config.power:
            stride *= self._apart(line, stride)
        if self.table is not None:
            sums = emit.scratch("sums", self.size)
            self._core(self.table, line, sums)
            line = sums
        factor, vectors = tile.broadcast(T.float32(config.factor)), Row(tile, config.width)
        if config.quantize is None:
            vectors.for_vectors(lambda at: at.store(self.y, at.whole.load(line) * factor, row))
            return
        vectors.for_vectors(lambda at: at.whole.store(line, at.whole.load(line) * factor))
        quantizer = RowQuantizer(config.quantize, self.codes, self.scales)
        quantizer.row(row, lambda column, lanes: emit.load(line, [column], lanes))

    @property
    def _most(self) -> int:
        """Vectors that are added and subtracted in registers at a time."""
        return self.tile.registers // 2

    def _neighbours(self, row: Expr, line: Expr) -> None:
        """From the row into the line, the sums over as many neighbours as registers hold."""
        power, lanes = self.config.power, self.lanes
        inside = [1 << n for n in range((min(power, lanes)).bit_length() - 1)]
        if power < lanes:
            Row(self.tile, self.config.width).for_vectors(
                lambda at: at.whole.store(line, self._within(at.load(self.x, row), inside))
            )
            return
        together = min(self._most, power // lanes)
        with emit.loop("group", self.config.width // (together * lanes)) as group:
            start = emit.bind("start", group * (together * lanes))
            loaded = [emit.load(self.x, [row, start + n * lanes], lanes) for n in range(together)]
            summed = between([self._within(vector, inside) for vector in loaded])
            for n, vector in enumerate(summed):
                emit.store(line, [start + n * lanes], vector, lanes)

    def _within(self, vector: Expr, halves: Sequence[int]) -> Expr:
        """Sums and differences of lanes that are `halves` apart, one after the other."""
        lane = T.ramp(T.int32(0), 1, self.lanes)
        for half in halves:
            vector = math.hold(vector)
            other = tirx.Shuffle([vector], [T.int32(n ^ half) for n in range(self.lanes)])
            first = tirx.EQ(
                T.bitwise_and(lane, T.broadcast(T.int32(half), self.lanes)), T.broadcast(T.int32(0), self.lanes)
            )
            one, less = (self.tile.broadcast(T.float32(sign)) for sign in (1, -1))
            vector = self.tile.fma(vector, tirx.Select(first, one, less), math.hold(other))
        return math.hold(vector)

    def _apart(self, line: Expr, stride: int) -> int:
        """In the line, sums over elements `stride` apart, a power of two of them, which is returned."""
        lanes, together = self.lanes, min(self._most, self.config.power // stride)
        with (
            emit.loop("group", self.config.width // (together * stride)) as group,
            emit.loop("vector", stride // lanes) as number,
        ):
            start = emit.bind("start", group * (together * stride) + number * lanes)
            places = [start + n * stride for n in range(together)]
            for place, vector in zip(places, between([math.hold(emit.load(line, [p], lanes)) for p in places])):
                emit.store(line, [place], vector, lanes)
        return together

    def _core(self, table: Expr, line: Expr, sums: Expr) -> None:
        """From one line into the other, the columns of every block times the matrix of order K.

        Where P is less than a vector, a vector of a sum goes over into the next ones, which are stored later.
        """
        config, lanes = self.config, self.lanes
        vectors = max(1, min(TILE_VECTORS, self._most // 4, config.power // lanes))
        with (
            emit.loop("block", config.width // config.block) as block,
            emit.loop("columns", max(1, config.power // (vectors * lanes))) as columns,
        ):
            start = emit.bind("start", block * config.block + columns * (vectors * lanes))
            whole, rest = divmod(config.core, TILE_ROWS)
            with emit.loop("rows", whole) as number:
                self._tile(table, line, sums, start, emit.bind("first", number * TILE_ROWS), TILE_ROWS, vectors)
            if rest:
                self._tile(table, line, sums, start, emit.index(whole * TILE_ROWS), rest, vectors)

    def _tile(self, table: Expr, line: Expr, sums: Expr, start: Expr, first: Expr, rows: int, vectors: int) -> None:
        """Some vectors of the sums `first` ... `first + rows - 1` of one block."""
        lanes, power, tile = self.lanes, self.config.power, self.tile
        totals = [emit.registers(f"totals{k}", vectors * lanes) for k in range(rows)]
        for total in totals:
            for v in range(vectors):
                emit.store(total, [v * lanes], tile.broadcast(T.float32(0)), lanes)
        with emit.loop("term", self.config.core) as term:
            place = emit.bind("place", start + term * power)
            terms = [math.hold(emit.load(line, [place + v * lanes], lanes)) for v in range(vectors)]
            for k, total in enumerate(totals):
                sign = math.hold(tile.broadcast(table[term, first + k]))
                for v in range(vectors):
                    emit.store(
                        total, [v * lanes], tile.fma(sign, terms[v], emit.load(total, [v * lanes], lanes)), lanes
                    )
        for k, total in enumerate(totals):
            for v in range(vectors):
                place = start + (first + k) * power + v * lanes
                emit.store(sums, [place], emit.load(total, [v * lanes], lanes), lanes)


def between(values: Sequence[Expr]) -> list[Expr]:
    """Sums and differences of a power of two of values in registers, neighbours first."""
    found, half = list(values), 1
    while half < len(found):
        for n in range(len(found)):
            if not n & half:
                first, second = found[n], found[n + half]
                found[n], found[n + half] = math.hold(first + second), math.hold(first - second)
        half *= 2
    return found


def transform(config: Hadamard) -> Any:
    """The PrimFunc ``(x (M, N), [table (K, K)], y (M, N))`` in float32, with the `table` where K > 1; M is any number.

    With `quantize` it is ``(x, [table], codes (M, N) int8, scale (M, 1))``: the results of `quantize_activation` on y.
    """
    name = "hadamard" if config.quantize is None else "hadamard_quantize"
    return emit.prim_func(name, lambda: _Kernel(config).body())
