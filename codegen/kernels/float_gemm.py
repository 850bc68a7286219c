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


def register_tile(
    tile: FloatTile,
    height: int,
    vectors: int,
    depth: Expr | int,
    scalar: Callable[[Expr, Expr], Expr],
    vector: Callable[[Expr, Expr], Expr],
    finish: Callable[[Callable[[Callable[[Expr, Expr, Expr], None]], None]], None],
    resume: tuple[Expr | bool, Cell] | None = None,
) -> None:
    """Emit one register tile.

    Args:
        tile: the machine's vectors; ``height * vectors`` accumulators and ``vectors + 1`` operands should fit in its
            registers.
        height, vectors: extent of the tile in rows and in vectors of columns.
        depth: number of steps k of the chain.
        scalar: ``(k, row)`` to the float32 scalar of that row.
        vector: ``(k, v)`` to the float32 vector of those columns.
        finish: emits what becomes of the accumulators; it is given a function that emits a statement for each
            accumulator ``(row, v, value)``.
        resume: ``(first, load)``: unless ``first``, the chain goes on from ``load(row, v)`` instead of zero.
    """
    lanes = tile.lanes
    accumulators = emit.registers("accumulators", height * vectors * lanes)

    def each(statement: Callable[[Expr, Expr, Expr], None]) -> None:
        with emit.unrolled("row", height) as row, emit.unrolled("v", vectors) as v:
            statement(row, v, (row * vectors + v) * lanes)

    def start(value: Cell) -> None:
        each(lambda row, v, at: emit.store(accumulators, [at], value(row, v), lanes))

    def from_zero() -> None:
        start(lambda row, v: tile.broadcast(T.float32(0)))

    if resume is None:
        from_zero()
    else:
        first, load = resume
        emit.branch(first, from_zero, lambda: start(load))

    with emit.loop("k", depth) as k:

        def step(row: Expr, v: Expr, at: Expr) -> None:
            value = tile.fma(tile.broadcast(scalar(k, row)), vector(k, v), emit.load(accumulators, [at], lanes))
            emit.store(accumulators, [at], value, lanes)

        each(step)
    finish(lambda statement: each(lambda row, v, at: statement(row, v, emit.load(accumulators, [at], lanes))))


def block_tile(
    tile: FloatTile,
    height: int,
    vectors: int,
    depth: tuple[Expr | int, int, Expr],
    scalar: Callable[[Expr, Expr], Expr],
    vector: Callable[[Expr, Expr], Expr],
    load: Cell,
    store: Callable[[Expr, Expr, Expr, bool], None],
) -> None:
    """Emit one register tile over one block of the depth.

    Args:
        tile, height, vectors: as in :func:`register_tile`.
        depth: the whole depth, the depth of a block, and which block this is.
        scalar: ``(k, row)`` to a scalar, k counted from the beginning of the depth.
        vector: ``(k, v)`` to a vector of columns, k counted from the beginning of the block.
        load: ``(row, v)`` to the partial sum left there by the block before.
        store: emits ``(row, v, value, last)``; the value is final when ``last``.
    """
    total, size, block = depth
    begin = emit.bind("begin", block * size)

    def finish(each: Callable[[Callable[[Expr, Expr, Expr], None]], None]) -> None:
        emit.branch(
            begin + size >= total,
            lambda: each(lambda row, v, value: store(row, v, value, True)),
            lambda: each(lambda row, v, value: store(row, v, value, False)),
        )

    def from_begin(k: Expr, row: Expr) -> Expr:
        return scalar(begin + k, row)

    steps = T.min(total - begin, emit.index(size))
    register_tile(tile, height, vectors, steps, from_begin, vector, finish, (block == 0, load))


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

    def tasks(self, tiles: int) -> Expr:
        """Number of tasks of ``tiles`` row tiles each."""
        return emit.ceil_div(self.count, tiles)

    def each(self, task: Expr, tiles: int, body: Callable[[int, Expr], None]) -> None:
        """Emit the loop over the row tiles of ``task``; ``body(height, first_row)`` knows the height."""
        first = emit.bind("first_tile", task * tiles)
        with emit.loop("tile", T.min(self.count - first, emit.index(tiles))) as tile:
            start = emit.bind("start", (first + tile) * self.rows // self.count)
            height = emit.bind("height", (first + tile + 1) * self.rows // self.count - start)
            # A flat list of guards and not a chain of else: TVM's simplifier slows down with every condition around it.
            for candidate in range(self.height, 0, -1):
                emit.branch(height == candidate, partial(body, candidate, start))
