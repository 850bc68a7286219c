"""The register tile that every dense float kernel here is made of, and the cutting of rows into such tiles.

A tile is an outer-product micro-kernel (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication",
2008): ``height`` scalars times ``vectors`` vectors, accumulated in ``height * vectors`` registers.

The law. Every element is the chain ``fma(a[k], b[k], acc)`` over k in increasing order from an accumulator of +0.
Cutting the depth into blocks stores the accumulator as float32 and loads it again, which keeps the chain. So the bits
of an element depend on its row and its column alone, not on the tile, the block sizes or the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import Expr, FloatTile


def check_registers(tile: FloatTile, height: int, vectors: int) -> None:
    """Raise ValueError when a register tile of this shape would spill: accumulators, one row of columns, one scalar."""
    needed = height * vectors + vectors + 1
    if needed > tile.registers:
        raise ValueError(
            f"a register tile of {height} rows by {vectors} vectors needs {needed} registers and {tile.name} has "
            f"{tile.registers}: choose fewer rows or vectors"
        )


Cell: TypeAlias = Callable[[Expr, Expr], Expr]
"""From (row, vector of columns) of a register tile to a float32 vector."""

Step: TypeAlias = Callable[[Callable[[Expr], Expr], Callable[[Expr], Expr]], None]
"""Emits one step of every chain, given a row's scalar and a vector of columns as functions of row and of v."""

Sweep: TypeAlias = Callable[[Step], None]
"""Emits the loops over the depth, outermost first, with one call of the step at each place a step stands."""


def register_tile(
    tile: FloatTile,
    height: int,
    vectors: int,
    sweep: Sweep,
    load: Cell,
    store: Callable[[Expr, Expr, Expr, bool], None],
    first: Expr | bool = True,
    last: Expr | bool = True,
) -> None:
    """Emit one register tile over the depth, or over one block of it.

    Args:
        tile: the machine's vectors; ``height * vectors`` accumulators and ``vectors + 1`` operands should fit in its
            registers.
        height, vectors: extent of the tile in rows and in vectors of columns.
        sweep: the steps of the chain, in their order.
        load: ``(row, v)`` to the partial sum that the block before has stored.
        store: emits ``(row, v, value, last)``; the value is a partial sum unless ``last``.
        first, last: whether the block is the first one, which starts from zero, and the last one.
    """
    lanes = tile.lanes
    rows = emit.LARGEST_REGISTERS // (vectors * lanes)
    groups = [
        (first, min(rows, height - first), emit.registers("accumulators", min(rows, height - first) * vectors * lanes))
        for first in range(0, height, rows)
    ]

    def each(statement: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
        for first, count, buffer in groups:
            with emit.unrolled("row", count) as row, emit.unrolled("v", vectors) as v:
                statement(first + row, v, buffer, (row * vectors + v) * lanes)

    def start(value: Cell) -> None:
        each(lambda row, v, buffer, at: emit.store(buffer, [at], value(row, v), lanes))

    def step(scalar: Callable[[Expr], Expr], vector: Callable[[Expr], Expr]) -> None:
        def multiply_add(row: Expr, v: Expr, buffer: Expr, at: Expr) -> None:
            value = tile.fma(tile.broadcast(scalar(row)), vector(v), emit.load(buffer, [at], lanes))
            emit.store(buffer, [at], value, lanes)

        each(multiply_add)

    def finish(last: bool) -> None:
        each(lambda row, v, buffer, at: store(row, v, emit.load(buffer, [at], lanes), last))

    emit.branch(first, lambda: start(lambda row, v: tile.broadcast(T.float32(0))), lambda: start(load))
    sweep(step)
    emit.branch(last, lambda: finish(True), lambda: finish(False))


class DepthBlock:
    """One of the blocks of ``size`` steps that a depth of ``total`` is cut into; ``index`` is its number."""

    def __init__(self, total: Expr | int, size: int, index: Expr) -> None:
        self.begin = emit.bind("begin", index * size)
        self.steps = T.min(total - self.begin, emit.index(size))
        self.first = index == 0
        self.last = self.begin + size >= total

    @staticmethod
    def count(total: Expr | int, size: int) -> Expr | int:
        """Number of blocks."""
        return emit.ceil_div(total, size)

    def sweep(self, scalar: Cell, vector: Cell) -> Sweep:
        """One loop over the steps k of this block: ``scalar(k, row)`` with k counted from the beginning of the depth,
        ``vector(k, v)`` with k counted from the beginning of the block."""

        def loop(step: Step) -> None:
            with emit.loop("k", self.steps) as k:
                step(lambda row: scalar(self.begin + k, row), lambda v: vector(k, v))

        return loop


def load_columns(tile: FloatTile, buffer: Expr, indices: Sequence[Expr], end: Expr | int, whole: bool) -> Expr:
    """A vector along the last dimension from ``indices`` on, zero at and past column ``end`` unless known ``whole``."""
    if whole:
        return emit.load(buffer, indices, tile.lanes)
    return tile.load_first(T.address_of(buffer[tuple(indices)]), _left(tile, indices[-1], end))


def store_columns(
    tile: FloatTile, buffer: Expr, indices: Sequence[Expr], value: Expr, end: Expr | int, whole: bool
) -> None:
    """Emit the store of a vector along the last dimension, short of column ``end`` unless known ``whole``."""
    if whole:
        emit.store(buffer, indices, value, tile.lanes)
    else:
        tile.store_first(T.address_of(buffer[tuple(indices)]), value, _left(tile, indices[-1], end))


def _left(tile: FloatTile, column: Expr, end: Expr | int) -> Expr:
    # Cut to the lanes before the cast: a distance may exceed int32.
    return T.cast(T.max(T.min(end - column, emit.index(tile.lanes)), emit.index(0)), "int32")


class RowTiles:
    """Rows cut into the fewest tiles of at most ``height`` rows, as even as possible.

    Even tiles matter for few rows: 13 rows at a height of 12 cost 7 + 6 and not 12 + 1, where the lone row would take
    as long as four because a chain of fused multiply-adds waits for itself.
    """

    def __init__(self, rows: Expr | int, height: int) -> None:
        self.rows, self.height = rows, height
        self.count = emit.ceil_div(rows, height)
        known = isinstance(rows, int)
        lowest, highest = (rows // self.count, emit.ceil_div(rows, self.count)) if known else (1, height)
        self.heights = range(highest, lowest - 1, -1)

    def tasks(self, tiles: int) -> Expr:
        """Number of tasks of ``tiles`` row tiles each."""
        return emit.ceil_div(self.count, tiles)

    def first_row(self, task: Expr, tiles: int) -> Expr:
        """First row of ``task``; that of the task after the last one is the number of rows."""
        return T.min(task * tiles, emit.index(self.count)) * self.rows // self.count

    def most_rows(self, tiles: int) -> int:
        """The most rows that one task can have."""
        return tiles * self.heights[0]

    def each(self, task: Expr, tiles: int, body: Callable[[int, Expr], None]) -> None:
        """Emit the loop over the row tiles of ``task``; ``body(height, first_row)`` knows the height."""
        first = emit.bind("first_tile", task * tiles)
        with emit.loop("tile", T.min(self.count - first, emit.index(tiles))) as tile:
            start = emit.bind("start", (first + tile) * self.rows // self.count)
            height = emit.bind("height", (first + tile + 1) * self.rows // self.count - start)
            # A flat list of guards and not a chain of else: TVM's simplifier slows down with every condition around it.
            for candidate in self.heights:
                emit.branch(height == candidate, partial(body, candidate, start))
