"""The Hadamard transform with a row to a block of threads, alone or with the quantisation of the row behind it.

The row lies in shared memory. Threads take groups of its elements into registers for a few stages of sums and differences;
then each thread forms sums over K for some columns, from signs that it reads as bits, and keeps them until all have read.
Sums are those of `kernels/hadamard.py` in the same order, so the bits are the same too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.quantize_activation import quantize_row
from planish.codegen.kernels.blocks.rows import RowBlock, threads_for
from planish.codegen.kernels.hadamard import Hadamard, between
from planish.codegen.simt.block import WARP, Block, rounded_bytes
from planish.codegen.tiles.float import Expr
from planish.ir.hadamard import hadamard

RADIX = 8
"""Elements that a thread adds and subtracts in registers at a time."""
LARGEST_SUMS = 64
"""Sums that one thread keeps in registers."""
WORD = 32
"""Signs in one word of the table."""


class Plan:
    """How the sums over K of one row are shared out.

    Attributes:
        columns: of all blocks of the row.
        groups: threads that share a column, each with `sums` of its sums.
        turns: columns that one thread takes.
        words: of signs that a thread reads for one term.

    Raises:
        ValueError: for rows that need more registers or shared memory than a thread, or a block, has.
    """

    def __init__(self, config: Hadamard, shared_bytes: int) -> None:
        self.threads = threads_for(config.width)
        self.columns = config.width // config.core
        self.groups = max(1, min(self.threads // self.columns, config.core))
        self.turns = -(-self.columns // self.threads)
        self.sums = -(-config.core // self.groups)
        self.words = -(-self.sums // WORD)
        self.size = _place(config.width)
        self.shared_bytes = rounded_bytes(self.size, "float32")
        if config.quantize is not None:
            self.shared_bytes += RowBlock.shared_bytes(self.threads, ("int32",))
        if self.shared_bytes > shared_bytes or (config.core > 1 and self.turns * self.sums > LARGEST_SUMS):
            raise ValueError(f"rows of {config.width} elements are too long to be transformed by one block")


def signs(config: Hadamard, plan: Plan) -> torch.Tensor:
    """The matrix of order K as the kernel reads it: int32 [K, groups, words], bit r of word w of (l, g) being 1 where term l
    of sum g * sums + WORD w + r is subtracted."""
    matrix = torch.zeros(plan.groups * plan.sums, config.core, dtype=torch.int64)
    matrix[: config.core] = (hadamard(config.core) < 0).to(torch.int64)
    bits = torch.zeros(config.core, plan.groups, plan.words * WORD, dtype=torch.int64)
    bits[:, :, : plan.sums] = matrix.T.reshape(config.core, plan.groups, plan.sums)
    words = (bits.unflatten(-1, (plan.words, WORD)) << torch.arange(WORD)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def transform(config: Hadamard, plan: Plan) -> Any:
    """The PrimFunc of `kernels.hadamard.transform`: the same arguments, but for the table, which is that of `signs`."""
    name = "hadamard" if config.quantize is None else "hadamard_quantize"

    def body() -> None:
        rows = emit.symbol("rows")
        shape = (rows, config.width)
        x = emit.argument("x", shape, "float32")
        table = emit.argument("table", (config.core, plan.groups, plan.words), "int32") if config.core > 1 else None
        if config.quantize is None:
            y = emit.argument("y", shape, "float32")
        else:
            codes, scales = emit.argument("codes", shape, "int8"), emit.argument("scale", (rows, 1), "float32")

        def at_row(block: Block) -> None:
            (row,), along = block.index, RowBlock(block, config.width)
            line = _Line(block, config, plan)
            line.read(x, row)
            if table is not None:
                line.sum_columns(table)
            if config.quantize is None:
                with block.phase() as thread:
                    along.each(thread, lambda k: T.buffer_store(y, line.value(k), [row, k]))
            else:
                quantize_row(block, along, row, line.value, codes, scales, config.quantize.largest)

        emit.launch((rows,), plan.threads, at_row, plan.shared_bytes)

    return emit.prim_func(name, body)


class _Line:
    """One row in shared memory."""

    def __init__(self, block: Block, config: Hadamard, plan: Plan) -> None:
        self.block, self.config, self.plan = block, config, plan
        self.shared = block.shared("line", plan.size)

    def value(self, column: Expr) -> Expr:
        """An element of the transformed row."""
        return math.hold(self.shared[_place(column)] * T.float32(self.config.factor))

    def read(self, x: Expr, row: Expr) -> None:
        """The row, with sums and differences over each P elements; at last a barrier."""
        stride, power = 1, self.config.power
        while stride == 1 or stride < power:
            together = min(RADIX, power // stride)
            self._pass(x, row, stride, together)
            self.block.barrier()
            stride *= max(2, together)

    def _pass(self, x: Expr, row: Expr, stride: int, together: int) -> None:
        """Sums over `together` elements `stride` apart; the first ones are read from x."""
        groups = RowBlock(self.block, self.config.width // together)
        with self.block.phase() as thread:

            def add(group: Expr) -> None:
                start = emit.bind("start", group // stride * (together * stride) + group % stride)
                places = [start + n * stride for n in range(together)]
                found = [math.hold(x[row, p] if stride == 1 else self.shared[_place(p)]) for p in places]
                for place, value in zip(places, between(found)):
                    T.buffer_store(self.shared, value, [_place(place)])

            groups.each(thread, add)

    def sum_columns(self, table: Expr) -> None:
        """Columns of K elements times the matrix of order K, in their own places; at last a barrier."""
        config, plan, block = self.config, self.plan, self.block
        sums = block.registers("sums", plan.turns * plan.sums)
        with block.phase() as thread:
            for n in range(plan.turns * plan.sums):
                sums[n] = T.float32(0)

            def collect() -> None:
                group = emit.bind("group", T.cast(thread, "int64") // plan.columns)
                with emit.loop("term", config.core) as term:
                    words = [math.hold(table[term, group, w]) for w in range(plan.words)]
                    for turn in range(plan.turns):
                        bits = math.hold(T.reinterpret("int32", self._element(thread, turn, term)))
                        for k in range(plan.sums):
                            lifted = T.shift_left(words[k // WORD], T.int32(WORD - 1 - k % WORD))
                            flipped = T.bitwise_xor(bits, T.bitwise_and(lifted, T.int32(-(1 << 31))))
                            n = turn * plan.sums + k
                            sums[n] = sums[n] + T.reinterpret("float32", flipped)

            emit.branch(self._busy(thread), collect)
        block.barrier()
        with block.phase() as thread:

            def put(turn: int) -> None:
                group = emit.bind("group", T.cast(thread, "int64") // plan.columns)
                for k in range(plan.sums):

                    def store(number: Expr = group * plan.sums + k, of_thread: int = turn * plan.sums + k) -> None:
                        place = self._column(thread, turn) + number * config.power
                        T.buffer_store(self.shared, sums[of_thread], [_place(place)])

                    there = group * plan.sums + k < config.core if plan.groups * plan.sums > config.core else True
                    emit.branch(there, store)

            def put_all() -> None:
                for turn in range(plan.turns):
                    emit.branch(self._inside(thread, turn), partial(put, turn))

            emit.branch(self._busy(thread), put_all)
        block.barrier()

    def _busy(self, thread: Expr) -> Expr | bool:
        """Whether a thread has sums to form."""
        used = self.plan.groups * self.plan.columns
        return True if used >= self.plan.threads else thread < used

    def _inside(self, thread: Expr, turn: int) -> Expr | bool:
        """Whether a thread has a column in one of its turns."""
        first = turn * self.plan.threads
        if first + self.plan.threads <= self.plan.columns or self.plan.turns == 1:
            return True
        return thread < self.plan.columns - first

    def _column(self, thread: Expr, turn: int) -> Expr:
        """Where a thread's column begins: its first element, in the row."""
        power = self.config.power
        number = (T.cast(thread, "int64") % self.plan.columns) + turn * self.plan.threads
        if self.config.width == self.config.block:
            return number
        return number // power * self.config.block + number % power

    def _element(self, thread: Expr, turn: int, term: Expr) -> Expr:
        """An element of a column; past the last column, of any."""
        inside = self._inside(thread, turn)
        place = self._column(thread, turn) + term * self.config.power
        if isinstance(inside, bool):
            return self.shared[_place(place)]
        return self.shared[_place(T.Select(inside, place, T.int64(0)))]


def _place(column: Any) -> Any:
    """Where an element of a row lies: with a gap after each WARP, so that neighbours of a stride lie in different banks."""
    return column + column // WARP
