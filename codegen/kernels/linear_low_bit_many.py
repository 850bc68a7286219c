"""The low-bit linear kernel for many rows: a task unpacks its panels once, and all rows pass over them.

A *block of rows* is what one instruction multiplies: a row by a vector of columns, or a pair of rows by the pairs of
columns of a vector, twice as deep. Either way a block has as many accumulators for a vector of columns as it has rows. For
pairs, codes are interleaved beforehand, lanes of an accumulator are (2 rows, 2 columns), and the last pair of an odd number
of rows is filled up with zeros.

Register tiles have a fixed number of rows. The last one is moved up so as to end with the last row, and computes some
rows a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_operands import Operands, Scaling, in_segments
from planish.codegen.tiles.float import Expr


class ManyRows:
    """The body of the kernel."""

    def __init__(self, operands: Operands) -> None:
        self.operands, self.config, self.tile = operands, operands.config, operands.tile
        self.floats, self.rows, self.groups = operands.floats, operands.rows, operands.groups
        self.block_rows = self.config.block_rows
        self.height = self.config.many // self.block_rows
        self.lanes, self.layout = self.tile.lanes, operands.layout
        # Products of a group, two by two.
        self.steps = self.config.group // (2 * self.tile.depth)
        self.most = max(1, self.config.unrolled // (2 * self.tile.depth))
        # Not bound: sizes of buffers are made of it.
        self.blocks = emit.ceil_div(self.rows, self.block_rows)
        # One number serves all lanes of a row; the lanes of a pair belong to two rows.
        self.start_lanes = 1 if self.block_rows == 1 else self.lanes
        # Every accumulator starts from a place of its own, as where rows are few.
        size = self.blocks * self.groups * self.block_rows * self.start_lanes
        self.starts = emit.scratch("starts", size, "int32")
        # What zero points multiply, one for each row in the lanes of a block's accumulators.
        self.totals = None
        if self.layout.zero_points:
            self.totals = emit.scratch("totals", self.blocks * self.groups * self.start_lanes)
        self.pairs = None
        if self.block_rows == 2:
            self.pairs = emit.scratch("pairs", self.blocks * 2 * self.config.in_features, "int8")

    def body(self) -> None:
        """Emit everything."""
        self.operands.for_rows("block", self.blocks, self._prepare)
        config, layout = self.config, self.layout
        together = config.unpacked_panels
        with emit.tasks("task", emit.ceil_div(self.operands.panels, together)) as task:
            first = emit.bind("first", task * together)
            vectors = emit.bind("vectors", T.min(self.operands.panels - first, emit.index(together)) * layout.vectors)
            weights = emit.scratch("weights", together * layout.columns * config.in_features, "uint8")
            size = together * layout.columns * self.groups * self.block_rows
            scales = emit.scratch("scales", size)
            zeros = emit.scratch("zeros", size) if layout.zero_points else None
            self._unpack(first, vectors, weights, scales, zeros)
            with emit.loop("tile", emit.ceil_div(self.blocks, self.height)) as tile:
                start = emit.bind("start", T.min(tile * self.height, self.blocks - self.height))
                with emit.loop("vector", vectors) as vector:
                    self._register_tile(start, vector, first, weights, scales, zeros)

    def _prepare(self, block: Expr) -> None:
        """Where the sums of a block of rows start; and a pair's codes side by side, eight of one row, eight of the other."""
        if self.pairs is None:
            with emit.loop("group", self.groups) as group:
                self._start_row(block, group, 0, self.operands.total(block, group))
            return
        depth, features = 2 * self.tile.depth, self.config.in_features
        for member in range(2):
            row = emit.bind("row", block * 2 + member)

            def codes(of_part: Callable[[Expr], Expr], member: int = member) -> None:
                with emit.loop("part", features // depth) as part:
                    at = (block * (features // depth) + part) * 2 * depth + member * depth
                    emit.store(self.pairs, [at], of_part(part), depth)

            def copy(row: Expr = row, member: int = member, codes: Any = codes) -> None:
                codes(lambda part: emit.load(self.operands.codes, [row, part * depth], depth))
                with emit.loop("group", self.groups) as group:
                    self._start_row(block, group, member, self.operands.total(row, group))

            def fill(member: int = member, codes: Any = codes) -> None:
                codes(lambda part: T.broadcast(T.int8(0), depth))
                with emit.loop("group", self.groups) as group:
                    self._start_row(block, group, member, T.int32(0))

            emit.branch(row < self.rows, copy, fill if member else None)

    def _start_row(self, block: Expr, group: Expr, member: int, total: Expr) -> None:
        """Put what follows from the sum of a row's codes in a group into the row's lanes."""
        start, of_row = T.bind(self.operands.start(total, self.config.first_level)), max(1, self.start_lanes // 2)
        first = (block * self.groups + group) * self.start_lanes
        for lane in range(member * of_row, (member + 1) * of_row):
            for part in range(self.block_rows):
                T.buffer_store(self.starts, start, [first * self.block_rows + part * self.start_lanes + lane])
            if self.totals is not None:
                T.buffer_store(self.totals, T.cast(T.int32(0) - total, "float32"), [first + lane])

    def _unpack(self, first: Expr, vectors: Expr, weights: Expr, scales: Expr, zeros: Expr | None) -> None:
        """Operands of the products, scales and zero points of a task's panels, as a register tile reads them."""
        size, lanes, layout = self.layout.vector_bytes, self.lanes, self.layout
        # Operands are made two by two.
        steps = max(1, 2 // layout.products)
        with emit.loop("panel", vectors // layout.vectors) as panel, emit.loop("group", self.groups) as group:
            block = self.operands.block(first + panel, group, once=True)
            # Its place among the groups of all vectors.
            places = [
                emit.bind("at", (panel * layout.vectors + v) * self.groups + group) for v in range(layout.vectors)
            ]
            with emit.loop("step", layout.steps // steps) as step:
                made = [
                    self.operands.unpack(block, step * steps + number, 0, range(layout.vectors))
                    for number in range(steps)
                ]
                for v, at in enumerate(places):
                    operands = [operand for of_step in made for operand in of_step[v]]
                    place = at * 2 * self.steps + step * len(operands)
                    for pair in range(len(operands) // 2):
                        for half, operand in enumerate(self._products(*operands[2 * pair : 2 * pair + 2])):
                            emit.store(weights, [(place + 2 * pair + half) * size], operand, size)
            for v, at in enumerate(places):
                scaling = self.operands.scaling(block, v)
                for part in range(self.block_rows):
                    place = (at * self.block_rows + part) * lanes
                    emit.store(scales, [place], self._parts(scaling.scales)[part], lanes)
                    if scaling.zeros is not None:
                        emit.store(zeros, [place], self._parts(scaling.zeros)[part], lanes)

    def _products(self, low: Expr, high: Expr) -> tuple[Expr, Expr]:
        """The operands of two products of a vector of columns, or of a product of pairs for each half of the columns."""
        if self.block_rows == 1:
            return low, high
        # Columns keep together what both halves have of them.
        word, size = f"int{8 * self.tile.depth}x{self.lanes}", self.layout.vector_bytes
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

    def _register_tile(
        self, start: Expr, vector: Expr, first: Expr, weights: Expr, scales: Expr, zeros: Expr | None
    ) -> None:
        """Some blocks of rows, from ``start`` on, in one vector of the columns of a task."""
        lanes, parts = self.lanes, self.block_rows
        cells = [(block, part) for block in range(self.height) for part in range(parts)]
        sums = emit.scratch("sums", len(cells) * lanes)
        for number in range(len(cells)):
            emit.store(sums, [number * lanes], self.floats.broadcast(T.float32(0)), lanes)
        with emit.loop("group", self.groups) as group:
            at = emit.bind("at", vector * self.groups + group)

            def segment(initial: Sequence[Expr], first: Expr | int, count: int) -> Sequence[Expr]:
                return self._segment(initial, start, group, at, weights, first, count)

            initial = [self._start(start + block, group, part) for block, part in cells]
            dots = in_segments(initial, lanes, self.steps, self.most, segment)

            def of_part(buffer: Expr, part: int) -> Expr:
                return T.bind(emit.load(buffer, [(at * parts + part) * lanes], lanes))

            scaling = [
                Scaling(of_part(scales, part), None if zeros is None else of_part(zeros, part)) for part in range(parts)
            ]
            totals = [self._total(start + block, group) for block in range(self.height)]
            for number, ((block, part), dot) in enumerate(zip(cells, dots, strict=True)):
                before = emit.load(sums, [number * lanes], lanes)
                total = self.operands.scaled(before, dot, scaling[part], totals[block])
                emit.store(sums, [number * lanes], total, lanes)
        column = emit.bind("column", first * self.layout.columns + vector * lanes)
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

    def _total(self, block: Expr, group: Expr) -> Expr | None:
        if self.totals is None:
            return None
        at = (block * self.groups + group) * self.start_lanes
        if self.start_lanes == 1:
            return T.bind(T.broadcast(self.totals[at], self.lanes))
        return T.bind(emit.load(self.totals, [at], self.lanes))

    def _segment(
        self,
        initial: Sequence[Expr],
        start: Expr,
        group: Expr,
        at: Expr,
        weights: Expr,
        first: Expr | int,
        count: int,
    ) -> Sequence[Expr]:
        """``initial``, by block and part, plus the products of ``count`` steps of one group."""
        size, depth = self.layout.vector_bytes, 2 * self.tile.depth
        k = group * self.config.group + depth * first

        def operand(step: int, half: int) -> Expr:
            return T.bind(emit.load(weights, [((at * self.steps + first + step) * 2 + half) * size], size))

        if self.pairs is not None:
            sums = list(initial)
            for step in range(count):
                operands = [operand(step, half) for half in range(2)]
                for block in range(self.height):
                    place = ((start + block) * self.config.in_features + k + step * depth) * 2
                    codes = T.bind(emit.load(self.pairs, [place], 2 * depth))
                    for part in range(2):
                        cell = block * 2 + part
                        sums[cell] = self.tile.add_pairs(sums[cell], codes, operands[part])
            return sums
        dots = [self.tile.accumulator(value, self.config.largest_operand) for value in initial]
        codes = [self.operands.row_codes(start + row, k, 2 * count) for row in range(self.height)]
        for step in range(count):
            for half in range(2):
                weight = operand(step, half)
                for row in range(self.height):
                    dots[row].add(weight, codes[row](2 * step + half))
        return [accumulator.value() for accumulator in dots]
