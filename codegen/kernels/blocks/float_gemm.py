"""The float32 matrix product that dense kernels for GPUs are made of: C[m, n] = sum over k of A(m, k) B(k, n).

A block computes one tile of C. Its threads copy DEPTH steps of both factors into shared memory while they multiply the
steps before, each with a register tile of its own. The factors are functions that emit the load of one element, so that
products, linear layers and convolutions share the text.

The law is that of `kernels/float_gemm.py`: every element is the chain ``fma(a[k], b[k], acc)`` over k in increasing order
from +0, so its bits depend on its row and its column alone, not on the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.simt.block import Block, Registers, rounded_bytes
from planish.codegen.target import BlockLimits
from planish.codegen.tiles.float import Expr
from planish.ir import Dim

NARROW, WIDE = 64, 128
"""Rows and columns of a tile."""
DEPTH = 16
"""Steps k between two barriers."""
_SIDE = 16
"""Threads along each side of a tile."""
THREADS = _SIDE * _SIDE
_VECTOR = 4
"""Neighbouring elements that a thread owns, so that it reads them from shared memory at once."""


@dataclass(frozen=True)
class Factor:
    """A or B.

    Attributes:
        element: from (batch, row of A or column of B, k), int64 each, to the float32 element; past the depth only the
            statements it emits are run, and the element is not read.
        along_depth: whether neighbours in memory are neighbours in k.
    """

    element: Callable[[Expr, Expr, Expr], Expr]
    along_depth: bool


@dataclass(frozen=True)
class Product:
    """A batch of matrix products.

    Attributes:
        batch, rows, columns, depth: B, M, N and K; the last three are less than 2^31.
        left, right: A and B.
        store: emits the store of ``(batch, row, column, value)``.
        wide: whether tiles are 128 x 128, and not 64 x 64: half the reads, where there are tiles enough.
    """

    batch: Expr | int
    rows: Expr | int
    columns: Expr | int
    depth: Expr | int
    left: Factor
    right: Factor
    store: Callable[[Expr, Expr, Expr, Expr], None]
    wide: bool = False

    @property
    def side(self) -> int:
        """Rows and columns of a tile."""
        return WIDE if self.wide else NARROW


def described(wide: bool) -> str:
    """The schedule, for the report."""
    side = WIDE if wide else NARROW
    return f"blocks of {side} x {side}, register tiles of {side // _SIDE} x {side // _SIDE}"


def is_wide(limits: BlockLimits, batch: Dim, rows: Dim, columns: Dim) -> bool:
    """Whether a product of that size has wide tiles enough for every multiprocessor; not where a size is symbolic."""
    sides = (rows, columns)
    if not isinstance(batch, int) or not all(isinstance(size, int) for size in sides):
        return False
    tiles = batch * prod(-(-int(size) // WIDE) for size in sides)
    return tiles >= 2 * limits.multiprocessors


def launch(product: Product) -> None:
    """Emit the kernel: one block for each tile, those of the same columns side by side."""
    row_tiles, column_tiles = (emit.ceil_div(size, product.side) for size in (product.rows, product.columns))

    def at_tile(block: Block) -> None:
        number = emit.bind("number", block.index[0])
        batch = emit.bind("batch", number // row_tiles // column_tiles)
        row = math.hold(T.cast(number % row_tiles * product.side, "int32"))
        column = math.hold(T.cast(number // row_tiles % column_tiles * product.side, "int32"))
        _Tile(block, product, batch, row, column).emit()

    buffers = 2 * rounded_bytes(2 * DEPTH * (product.side + _VECTOR), "float32")
    emit.launch((product.batch * row_tiles * column_tiles,), THREADS, at_tile, buffers)


class _Staged:
    """One factor's part of a tile: ``shared[k, outer]``, twice, with a gap that keeps columns of it in several banks."""

    def __init__(self, block: Block, name: str, product: Product, factor: Factor, outers: Expr | int) -> None:
        self.product, self.factor, self.outers, self.side = product, factor, outers, product.side
        self.pitch = self.side + _VECTOR
        self.shared = block.shared(name, 2 * DEPTH * self.pitch)
        self.waiting = block.registers(f"{name}_waiting", DEPTH * self.side // THREADS)

    def _place(self, thread: Expr, number: int) -> tuple[Expr, Expr]:
        """(outer, k) in the tile of the thread's staged element of that number; neighbours read neighbours."""
        element = thread + number * THREADS
        if self.factor.along_depth:
            return element // DEPTH, element % DEPTH
        return element % self.side, element // self.side

    def fetch(self, thread: Expr, batch: Expr, first: Expr, begin: Expr) -> None:
        """Within a phase: begin to read the steps from `begin` on, zeros past the last one."""
        for number in range(self.waiting.size):
            outer, k = self._place(thread, number)
            outer, k = first + outer, math.hold(begin + k)
            if not (isinstance(self.outers, int) and self.outers % self.side == 0):
                # What is computed past the edge is stored nowhere.
                outer = T.min(outer, _short(self.outers) - 1)
            value = self.factor.element(batch, T.cast(math.hold(outer), "int64"), T.cast(k, "int64"))
            inside = _inside((k, self.product.depth, DEPTH))
            self.waiting[number] = value if inside is None else T.if_then_else(inside, value, T.float32(0))

    def put(self, thread: Expr, buffer: Expr) -> None:
        """Within a phase: what was read goes to shared memory."""
        for number in range(self.waiting.size):
            outer, k = self._place(thread, number)
            T.buffer_store(self.shared, self.waiting[number], [(buffer * DEPTH + k) * self.pitch + outer])

    def step(self, buffer: Expr, k: Expr, side: Expr) -> list[Expr]:
        """The elements of step k that a thread at place `side` of its side multiplies."""
        start = (buffer * DEPTH + T.cast(k, "int32")) * self.pitch + side * _VECTOR
        return [math.hold(self.shared[start + at]) for at in _owned(self.side)]


def _short(size: Expr | int) -> Expr:
    return T.int32(size) if isinstance(size, int) else T.cast(size, "int32")


def _inside(*places: tuple[Expr, Expr | int, int]) -> Expr | None:
    """Whether each (place, size, tile) is within its size; None where the tile divides them all."""
    inside = None
    for place, size, tile in places:
        if isinstance(size, int) and size % tile == 0:
            continue
        condition = place < _short(size)
        inside = condition if inside is None else T.And(inside, condition)
    return inside


def _owned(side: int) -> list[int]:
    """Positions along a side of the tile that the first thread owns; those of the others follow in vectors."""
    return [group + at for group in range(0, side, _SIDE * _VECTOR) for at in range(_VECTOR)]


class _Tile:
    """One block's tile of C."""

    def __init__(self, block: Block, product: Product, batch: Expr, row: Expr, column: Expr) -> None:
        self.block, self.product, self.batch, self.row, self.column = block, product, batch, row, column
        self.left = _Staged(block, "left", product, product.left, product.rows)
        self.right = _Staged(block, "right", product, product.right, product.columns)
        self.owned = _owned(product.side)
        self.sums = block.registers("sums", len(self.owned) ** 2)

    def emit(self) -> None:
        with self.block.phase() as thread:
            for at in range(self.sums.size):
                self.sums[at] = T.float32(0)
            self._fetch(thread, T.int32(0))
            self._put(thread, T.int32(0))
        self.block.barrier()
        with emit.loop("piece", emit.ceil_div(self.product.depth, DEPTH)) as piece:
            number = math.hold(T.cast(piece, "int32"))
            self._multiply(math.hold(number * DEPTH), number % 2)
        with self.block.phase() as thread:
            self._store(thread)

    def _fetch(self, thread: Expr, begin: Expr) -> None:
        self.left.fetch(thread, self.batch, self.row, begin)
        self.right.fetch(thread, self.batch, self.column, begin)

    def _put(self, thread: Expr, buffer: Expr) -> None:
        self.left.put(thread, buffer)
        self.right.put(thread, buffer)

    def _multiply(self, begin: Expr, buffer: Expr) -> None:
        """The steps from `begin` on, which lie in that buffer, while the next ones travel to the other one."""
        width = len(self.owned)
        with self.block.phase() as thread:
            more = begin + DEPTH < _short(self.product.depth)
            emit.branch(more, lambda: self._fetch(thread, begin + DEPTH))
            with emit.loop("k", DEPTH) as k:
                rows = self.left.step(buffer, k, thread // _SIDE)
                columns = self.right.step(buffer, k, thread % _SIDE)
                for m, row in enumerate(rows):
                    for n, column in enumerate(columns):
                        self.sums[m * width + n] = math.fma(row, column, self.sums[m * width + n])
            emit.branch(more, lambda: self._put(thread, 1 - buffer))
        self.block.barrier()

    def _store(self, thread: Expr) -> None:
        product, width = self.product, len(self.owned)
        for m, row_at in enumerate(self.owned):
            row = math.hold(self.row + thread // _SIDE * _VECTOR + row_at)
            for n, column_at in enumerate(self.owned):
                column = math.hold(self.column + thread % _SIDE * _VECTOR + column_at)
                inside = _inside((row, product.rows, product.side), (column, product.columns, product.side))
                emit.branch(
                    True if inside is None else inside,
                    _storing(product, self.batch, row, column, self.sums, m * width + n),
                )


def _storing(product: Product, batch: Expr, row: Expr, column: Expr, sums: Registers, at: int) -> Callable[[], None]:
    return lambda: product.store(batch, T.cast(row, "int64"), T.cast(column, "int64"), sums[at])
