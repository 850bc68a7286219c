"""The 4-bit linear kernel for many rows: a task unpacks its panels once, and all rows pass over them.

A *block of rows* is what one instruction multiplies: a row by a vector of columns, or a pair of rows by the pairs of
columns of a vector, twice as deep. Either way a block has as many accumulators for a vector of columns as it has rows. For
pairs, codes are interleaved beforehand, lanes of an accumulator are (2 rows, 2 columns), and the last pair of an odd number
of rows is filled up with zeros.

Register tiles have a fixed number of rows. The last one is moved up so as to end with the last row, and computes some
rows a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_int4_config import ZERO_CODE
from planish.codegen.kernels.linear_int4_operands import BITS_OF_ZERO, Operands, as_float, in_segments
from planish.codegen.tiles.float import Expr


class ManyRows:
    """The body of the kernel."""

    def __init__(self, operands: Operands) -> None:
        self.operands, self.config, self.tile = operands, operands.config, operands.tile
        self.floats, self.rows, self.groups = operands.floats, operands.rows, operands.groups
        self.block_rows = self.config.block_rows
        self.height = self.config.many // self.block_rows
        self.lanes, self.steps = self.tile.lanes, self.config.layout.steps
        # Not bound: sizes of buffers are made of it.
        self.blocks = emit.ceil_div(self.rows, self.block_rows)
        # One number serves all lanes of a row; the lanes of a pair belong to two rows.
        self.start_lanes = 1 if self.block_rows == 1 else self.lanes
        # Every accumulator starts from a place of its own, as where rows are few.
        size = self.blocks * self.groups * self.block_rows * self.start_lanes
        self.starts = emit.scratch("starts", size, "int32")
        self.pairs = None
        if self.block_rows == 2:
            self.pairs = emit.scratch("pairs", self.blocks * 2 * self.config.in_features, "int8")

    def body(self) -> None:
        """Emit everything."""
        self.operands.for_rows("block", self.blocks, self._prepare)
        config, layout = self.config, self.config.layout
        together = config.unpacked_panels
        with emit.tasks("task", emit.ceil_div(self.operands.panels, together)) as task:
            first = emit.bind("first", task * together)
            vectors = emit.bind("vectors", T.min(self.operands.panels - first, emit.index(together)) * config.vectors)
            weights = emit.scratch("weights", together * layout.columns * config.in_features, "uint8")
            scales = emit.scratch("scales", together * layout.columns * self.groups * self.block_rows)
            self._unpack(first, vectors, weights, scales)
            with emit.loop("tile", emit.ceil_div(self.blocks, self.height)) as tile:
                start = emit.bind("start", T.min(tile * self.height, self.blocks - self.height))
                with emit.loop("vector", vectors) as vector:
                    self._register_tile(start, vector, first, weights, scales)

    def _prepare(self, block: Expr) -> None:
        """Where the sums of a block of rows start; and a pair's codes side by side, eight of one row, eight of the other."""
        if self.pairs is None:
            with emit.loop("group", self.groups) as group:
                T.buffer_store(self.starts, self.operands.start(block, group), [block * self.groups + group])
            return
        depth, features = 2 * self.tile.depth, self.config.in_features
        for member in range(2):
            row = emit.bind("row", block * 2 + member)

            def copy(row: Expr = row, member: int = member) -> None:
                with emit.loop("part", features // depth) as part:
                    at = (block * (features // depth) + part) * 2 * depth + member * depth
                    emit.store(self.pairs, [at], emit.load(self.operands.codes, [row, part * depth], depth), depth)
                with emit.loop("group", self.groups) as group:
                    self._spread_start(block, group, member, self.operands.start(row, group))

            def fill(member: int = member) -> None:
                with emit.loop("part", features // depth) as part:
                    at = (block * (features // depth) + part) * 2 * depth + member * depth
                    emit.store(self.pairs, [at], T.broadcast(T.int8(0), depth), depth)
                with emit.loop("group", self.groups) as group:
                    self._spread_start(block, group, member, T.int32(BITS_OF_ZERO))

            emit.branch(row < self.rows, copy, fill if member else None)

    def _spread_start(self, block: Expr, group: Expr, member: int, start: Expr) -> None:
        """Put a row's start into its lanes of the accumulators of a pair."""
        held = T.bind(start)
        for accumulator in range(2):
            for lane in range(self.lanes // 2):
                at = ((block * self.groups + group) * 2 + accumulator) * self.lanes + member * (self.lanes // 2) + lane
                T.buffer_store(self.starts, held, [at])

    def _unpack(self, first: Expr, vectors: Expr, weights: Expr, scales: Expr) -> None:
        """Operands of the products and scales of a task's panels, in the order in which a register tile reads them."""
        size, lanes = self.config.layout.vector_bytes, self.lanes
        with emit.loop("panel", vectors // self.config.vectors) as panel, emit.loop("group", self.groups) as group:
            block = self.operands.block(first + panel, group)
            for v in range(self.config.vectors):
                at = emit.bind("at", (panel * self.config.vectors + v) * self.groups + group)
                for step in range(self.steps):
                    for half, operand in enumerate(self._products(*self.operands.unpack(block, step, v))):
                        emit.store(weights, [((at * self.steps + step) * 2 + half) * size], operand, size)
                for part, vector in enumerate(self._parts(self.operands.scales(block, v))):
                    emit.store(scales, [(at * self.block_rows + part) * lanes], vector, lanes)

    def _products(self, low: Expr, high: Expr) -> tuple[Expr, Expr]:
        """The weight operands of a step, from the halves of packed bytes."""
        if self.block_rows == 1:
            return low, high
        # Columns keep together what both halves have of them.
        word, size = f"int{8 * self.tile.depth}x{self.lanes}", self.config.layout.vector_bytes
        words = [T.bind(T.reinterpret(word, half)) for half in (low, high)]
        first, second = (
            tirx.Shuffle(words, [T.int32(at) for column in columns for at in (column, column + self.lanes)])
            for columns in (range(self.lanes // 2), range(self.lanes // 2, self.lanes))
        )
        return T.reinterpret(f"uint8x{size}", first), T.reinterpret(f"uint8x{size}", second)

    def _parts(self, columns: Expr) -> list[Expr]:
        """A vector of numbers, one for each column, as the lanes of a block's accumulators have them."""
        if self.block_rows == 1:
            return [columns]
        half = self.lanes // 2
        return [
            tirx.Shuffle([columns], [T.int32(part * half + column) for _ in range(2) for column in range(half)])
            for part in range(2)
        ]

    def _by_row(self, parts: Sequence[Expr]) -> list[Expr]:
        """The accumulators of a block as one vector of columns for each row."""
        if self.block_rows == 1:
            return list(parts)
        half = self.lanes // 2
        held = [T.bind(part) for part in parts]
        return [
            tirx.Shuffle(held, [T.int32(part * self.lanes + row * half + c) for part in range(2) for c in range(half)])
            for row in range(2)
        ]

    def _register_tile(self, start: Expr, vector: Expr, first: Expr, weights: Expr, scales: Expr) -> None:
        """Some blocks of rows, from ``start`` on, in one vector of the columns of a task."""
        lanes, parts = self.lanes, self.block_rows
        cells = [(block, part) for block in range(self.height) for part in range(parts)]
        sums = emit.scratch("sums", len(cells) * lanes)
        for number in range(len(cells)):
            emit.store(sums, [number * lanes], self.floats.broadcast(T.float32(0)), lanes)
        with emit.loop("group", self.groups) as group:
            at = emit.bind("at", vector * self.groups + group)

            def segment(initial: Sequence[Expr], steps: Sequence[Expr | int]) -> Sequence[Expr]:
                return self._segment(initial, start, group, at, weights, steps)

            initial = [self._start(start + block, group, part) for block, part in cells]
            dots = in_segments(initial, lanes, self.steps, self.config.steps, segment)
            loaded = [T.bind(emit.load(scales, [(at * parts + part) * lanes], lanes)) for part in range(parts)]
            for number, ((_, part), dot) in enumerate(zip(cells, dots, strict=True)):
                before = emit.load(sums, [number * lanes], lanes)
                total = self.floats.fma(as_float(self.floats, dot), loaded[part], before)
                emit.store(sums, [number * lanes], total, lanes)
        column = emit.bind("column", first * self.config.layout.columns + vector * lanes)
        for block in range(self.height):
            of_block = [emit.load(sums, [(block * parts + part) * lanes], lanes) for part in range(parts)]
            for member, value in enumerate(self._by_row(of_block)):
                row = emit.bind("row", (start + block) * parts + member)

                def store(row: Expr = row, value: Expr = value) -> None:
                    self.operands.store(row, column, value)

                emit.branch(row < self.rows if member else True, store)

    def _start(self, block: Expr, group: Expr, part: int) -> Expr:
        at = ((block * self.groups + group) * self.block_rows + part) * self.start_lanes
        if self.start_lanes == 1:
            return T.bind(T.broadcast(self.starts[at], self.lanes))
        return T.bind(emit.load(self.starts, [at], self.lanes))

    def _segment(
        self, initial: Sequence[Expr], start: Expr, group: Expr, at: Expr, weights: Expr, steps: Sequence[Expr | int]
    ) -> Sequence[Expr]:
        """``initial``, by block and part, plus the products of some steps of one group."""
        size = self.config.layout.vector_bytes

        def operand(step: Expr | int, half: int) -> Expr:
            return T.bind(emit.load(weights, [((at * self.steps + step) * 2 + half) * size], size))

        depth = 2 * self.tile.depth
        if self.pairs is not None:
            sums = list(initial)
            for step in steps:
                k = group * self.config.group + depth * step
                operands = [operand(step, half) for half in range(2)]
                for block in range(self.height):
                    codes = T.bind(
                        emit.load(self.pairs, [((start + block) * self.config.in_features + k) * 2], 2 * depth)
                    )
                    for part in range(2):
                        at_cell = block * 2 + part
                        sums[at_cell] = self.tile.add_pairs(sums[at_cell], codes, operands[part])
            return sums
        dots = [self.tile.accumulator(value, 2 * ZERO_CODE - 1) for value in initial]
        together = max(1, self.tile.taken // depth)
        together = together if len(steps) % together == 0 else 1
        for number, step in enumerate(steps):
            if number % together == 0:
                k = group * self.config.group + depth * step
                taken = [self.operands.row_codes(start + row, k, 2 * together) for row in range(self.height)]
            for half in range(2):
                weight = operand(step, half)
                for row in range(self.height):
                    dots[row].add(weight, taken[row](2 * (number % together) + half))
        return [accumulator.value() for accumulator in dots]
