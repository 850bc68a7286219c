"""A few rows times a matrix, ``y[m, n] = sum over k of x[m, k] W[n, k]``, at the speed at which W is read.

A warp computes COLUMNS columns of y for all rows. Its lanes read W in runs of 16 bytes, where W has such runs; the block
shares a piece of x, laid out so that a lane's neighbours read neighbours. Each lane forms the chain
``fma(x[k], w[k], acc)`` over its own k in increasing order, and the lanes' sums are added pairwise. So the bits of an
element depend on its row and its column alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.pointwise.dtypes import loaded
from planish.codegen.simt.block import WARP, Block, Registers, rounded_bytes, warp_total
from planish.codegen.tiles.float import Expr

THREADS = 256
COLUMNS = 2
"""Columns of one warp: each element of x that it reads from shared memory is used as often."""
_RUN = 16
_WORDS = _RUN // 4


class Matrix(ABC):
    """W as a warp reads it, in runs.

    Attributes:
        run: neighbouring elements that a lane reads at once: 1, or a divisor of K, and then at most 16.
        words: registers (uint32) that hold a run.
    """

    run: int
    words: int

    @abstractmethod
    def read(self, block: Block, registers: Registers, at: int, column: Expr, k: Expr) -> None:
        """Within a phase: begin to read the run from step k (int64, less than K) of a column on."""

    @abstractmethod
    def value(self, registers: Registers, at: int, of_run: int) -> Expr:
        """One element of a run that was read, as float32; 0, or anything finite, where the registers are 0."""


class DenseMatrix(Matrix):
    """W element by element, bfloat16 as its bits; rows of whole runs are aligned to them.

    Args:
        weight: (N, K).
        dtype: logical dtype of its elements.
        depth: K.
    """

    def __init__(self, weight: Any, dtype: torch.dtype, depth: int) -> None:
        self.weight, self.dtype = weight, dtype
        whole = _RUN // dtype.itemsize
        self.run, self.words = (whole, _WORDS) if depth % whole == 0 else (1, 1)

    def read(self, block: Block, registers: Registers, at: int, column: Expr, k: Expr) -> None:
        if self.run == 1:
            registers[at] = T.reinterpret("uint32", loaded(self.weight[column, k], self.dtype))
        else:
            block.load_vector(registers, at, _WORDS, self.weight, (column, k))

    def value(self, registers: Registers, at: int, of_run: int) -> Expr:
        if self.run == 1 or self.dtype == torch.float32:
            return T.reinterpret("float32", registers[at + of_run])
        word = registers[at + of_run * self.dtype.itemsize // 4]
        half = T.cast(T.shift_right(word, T.uint32(of_run % 2 * 16)), "uint16")
        return loaded(T.reinterpret("float16", half) if self.dtype == torch.float16 else half, self.dtype)


@dataclass(frozen=True)
class FewRows:
    """One launch.

    Attributes:
        x: (M, K) float32.
        matrix: W, (N, K).
        rows, columns, depth: M, N and K.
        height: rows for which there are registers, at least M.
        store: emits the store of ``(row, column, value)``.
    """

    x: Any
    matrix: Matrix
    rows: Expr | int
    columns: int
    depth: int
    height: int
    store: Callable[[Expr, Expr, Expr], None]

    @property
    def run(self) -> int:
        """Neighbouring elements of W that a lane reads at once."""
        return self.matrix.run

    @property
    def runs(self) -> int:
        """Reads that a lane has under way for each column."""
        return (2 if self.height <= 4 else 1) * (1 if self.run > 1 else _WORDS)

    @property
    def piece(self) -> int:
        """Steps k between two barriers."""
        return WARP * self.run * self.runs

    @property
    def pitch(self) -> int:
        """Distance in shared memory between neighbouring k of one lane; the gap spreads what is written over banks."""
        return WARP + (WARP // self.run if self.run > 1 else 0)

    @property
    def row_size(self) -> int:
        """Elements that one row's piece takes in shared memory."""
        return self.run * self.runs * self.pitch


def launch(rows: FewRows) -> None:
    """Emit the kernel: a warp for every COLUMNS columns."""
    of_block = THREADS // WARP * COLUMNS
    shared = rounded_bytes(2 * rows.height * rows.row_size, "float32")
    emit.launch((emit.ceil_div(rows.columns, of_block),), THREADS, lambda block: _Warps(block, rows).emit(), shared)


def _long(place: Expr) -> Expr:
    return T.cast(place, "int64")


class _Warps:
    """The columns of one block."""

    def __init__(self, block: Block, rows: FewRows) -> None:
        self.block, self.rows = block, rows
        self.first = math.hold(T.cast(block.index[0], "int32") * (block.threads // WARP * COLUMNS))
        self.x = block.shared("x_piece", 2 * rows.height * rows.row_size)
        self.sums = block.registers("sums", rows.height * COLUMNS)
        self.waiting = block.registers("waiting", COLUMNS * rows.runs * rows.matrix.words, "uint32")

    def emit(self) -> None:
        rows = self.rows
        with self.block.phase():
            for at in range(self.sums.size):
                self.sums[at] = T.float32(0)
        with emit.loop("piece", emit.ceil_div(rows.depth, rows.piece)) as piece:
            number = math.hold(T.cast(piece, "int32"))
            buffer = number % 2 * (rows.height * rows.row_size)
            with self.block.phase() as thread:
                self._read(thread, number * rows.piece)
                self._share(thread, number * rows.piece, buffer)
            # Two pieces of x take turns, so that one barrier is enough.
            self.block.barrier()
            with self.block.phase() as thread:
                self._multiply(math.hold(buffer + thread % WARP))
        self._finish()

    def _column(self, thread: Expr, number: int) -> Expr:
        return self.first + thread // WARP * COLUMNS + number

    def _read(self, thread: Expr, begin: Expr) -> None:
        """Begin to read the lane's runs of W."""
        rows, lane = self.rows, math.hold(thread % WARP)
        for number in range(COLUMNS):
            # A column past the last one reads that again and is stored nowhere.
            column = math.hold(T.min(self._column(thread, number), T.int32(rows.columns - 1)))
            for of_piece in range(rows.runs):
                k = math.hold(begin + (of_piece * WARP + lane) * rows.run)
                self._read_run(number * rows.runs + of_piece, column, k)

    def _read_run(self, number: int, column: Expr, k: Expr) -> None:
        rows, words = self.rows, self.rows.matrix.words
        at = number * words

        def read() -> None:
            rows.matrix.read(self.block, self.waiting, at, _long(column), _long(k))

        def clear() -> None:
            for word in range(words):
                self.waiting[at + word] = T.uint32(0)

        emit.branch(rows.depth % rows.piece == 0 or k < rows.depth, read, clear)

    def _share(self, thread: Expr, begin: Expr, buffer: Expr) -> None:
        """Copy a piece of x, zeros past its edges."""
        rows = self.rows
        steps = emit.ceil_div(rows.height * rows.piece, THREADS)
        with emit.loop("step", steps) as step:
            element = math.hold(T.cast(step, "int32") * THREADS + thread)
            row, of_piece = element // rows.piece, element % rows.piece
            place = buffer + row * rows.row_size
            place += (of_piece // (WARP * rows.run) * rows.run + of_piece % rows.run) * rows.pitch
            place += of_piece // rows.run % WARP
            row, k = _long(row), math.hold(begin + of_piece)
            inside = T.And(row < rows.rows, k < rows.depth)

            def copy(place: Expr = place, row: Expr = row, k: Expr = k, inside: Expr = inside) -> None:
                T.buffer_store(self.x, T.if_then_else(inside, rows.x[row, _long(k)], T.float32(0)), [place])

            emit.branch(rows.height * rows.piece % THREADS == 0 or element < rows.height * rows.piece, copy)

    def _multiply(self, first: Expr) -> None:
        rows = self.rows
        for step in range(rows.runs * rows.run):
            x = [math.hold(self.x[first + (row * rows.row_size + step * rows.pitch)]) for row in range(rows.height)]
            for number in range(COLUMNS):
                weight = math.hold(self._element(number * rows.runs + step // rows.run, step % rows.run))
                for row in range(rows.height):
                    at = row * COLUMNS + number
                    self.sums[at] = math.fma(x[row], weight, self.sums[at])

    def _element(self, run: int, of_run: int) -> Expr:
        matrix = self.rows.matrix
        return matrix.value(self.waiting, run * matrix.words, of_run)

    def _finish(self) -> None:
        rows, total = self.rows, self.block.registers("total", 1)
        for row in range(rows.height):
            for number in range(COLUMNS):
                with self.block.phase():
                    total[0] = self.sums[row * COLUMNS + number]
                warp_total(self.block, total, lambda a, b: a + b)
                with self.block.phase() as thread:
                    self._store(thread, row, number, total)

    def _store(self, thread: Expr, row: int, number: int, total: Registers) -> None:
        rows, column = self.rows, math.hold(self._column(thread, number))
        wanted = T.And(thread % WARP < 1, column < rows.columns)
        if not isinstance(rows.rows, int):
            wanted = T.And(wanted, emit.index(row) < rows.rows)
        elif row >= rows.rows:
            return
        emit.branch(wanted, lambda: rows.store(emit.index(row), _long(column), total[0]))
