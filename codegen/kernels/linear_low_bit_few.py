"""The low-bit linear kernel for few rows: panels are streamed and unpacked in registers, and the rows share every load.

The arithmetic of one block can fill the processor's window, and it would then ask memory for the next block too late,
so each load also requests the bytes that are due some time later. With more rows than a register tile has, a task keeps a
few panels in cache while all rows pass over them.

Where a byte has codes of more vectors of columns than a register tile, tiles follow each other, and each reads it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_operands import Operands, in_segments, streamed
from planish.codegen.kernels.linear_low_bit_repeated import Repeated
from planish.codegen.kernels.packed_blocks import Block
from planish.codegen.tiles.float import Expr


class FewRows:
    """The body of the kernel."""

    def __init__(self, operands: Operands) -> None:
        self.operands, self.config, self.tile = operands, operands.config, operands.tile
        self.floats, self.rows, self.groups = operands.floats, operands.rows, operands.groups
        self.layout = operands.layout
        self.most = max(1, self.config.unrolled // (self.tile.depth * self.layout.products))
        self.starts = Repeated("starts", self.tile, self.rows * self.groups, self.layout.vectors)
        # What zero points multiply.
        self.totals = None
        if operands.layout.zero_points:
            self.totals = Repeated("totals", self.tile, self.rows * self.groups, 1, "float32")

    def body(self) -> None:
        """Emit everything."""
        config, operands = self.config, self.operands
        operands.for_rows("row", self.rows, self._starts)
        # As few row tiles as possible, and as even: a tile of one row costs nearly as much as one of four.
        tiles = emit.bind("tiles", emit.ceil_div(self.rows, config.rows))
        # One row tile reads every panel once, so tasks may be as fine as panels; with more, panels wait in cache.
        together = emit.bind("together", T.Select(tiles <= 1, emit.index(1), emit.index(config.task_panels)))
        with emit.tasks("task", emit.ceil_div(operands.panels, together)) as task:
            first = emit.bind("first", task * together)
            panels = emit.bind("panels", T.min(operands.panels - first, together))
            with emit.loop("tile", tiles) as tile:
                start = emit.bind("start", tile * self.rows // tiles)
                height = emit.bind("height", (tile + 1) * self.rows // tiles - start)
                self._row_tile(config.rows, height, start, first, panels)

    def _starts(self, row: Expr) -> None:
        with emit.loop("group", self.groups) as group:
            total = self.operands.total(row, group)
            self.starts.put(row * self.groups + group, T.bind(self.operands.start(total, self.config.first_level)))
            if self.totals is not None:
                self.totals.put(row * self.groups + group, T.bind(T.cast(T.int32(0) - total, "float32")))

    def _row_tile(self, candidate: int, height: Expr, start: Expr, first: Expr, panels: Expr) -> None:
        """Rows ``start ... start + height - 1`` of y in some panels, ``height`` being at most ``candidate``."""

        def this() -> None:
            with emit.loop("panel", panels) as panel:
                self._register_tile(candidate, start, first + panel)

        if candidate == 1:
            this()
        else:
            emit.branch(height == candidate, this, lambda: self._row_tile(candidate - 1, height, start, first, panels))

    def _register_tile(self, height: int, start: Expr, panel: Expr) -> None:
        """Rows ``start ... start + height - 1`` of y in the columns of one panel."""
        lanes, vectors, steps = self.tile.lanes, self.layout.vectors, self.layout.steps
        # More than one row tile are never as low as this, so here is the only one.
        once = height < (self.config.rows + 1) // 2
        most = streamed(steps, self.most, self.tile) if height == 1 else self.most
        sums = emit.scratch("sums", vectors * height * lanes)

        def place(v: Expr | int, row: int) -> Expr | int:
            return (v * height + row) * lanes

        for number in range(vectors * height):
            emit.store(sums, [number * lanes], self.floats.broadcast(T.float32(0)), lanes)
        with emit.loop("group", self.groups) as group:
            block = self.operands.block(panel, group, once)
            numbers = [(start + row) * self.groups + group for row in range(height)]
            totals = [None if self.totals is None else self.totals.get(number) for number in numbers]

            def tile(first_vector: Expr | int, members: range) -> None:
                def segment(initial: Sequence[Expr], first: Expr | int, count: int) -> Sequence[Expr]:
                    return self._segment(initial, start, block, group, first_vector, members, first, count)

                initial = [self.starts.get(number, member) for number in numbers for member in members]
                dots = iter(in_segments(initial, lanes, steps, most, segment))
                scaling = {member: self.operands.scaling(block, first_vector + member) for member in members}
                for row in range(height):
                    for member in members:
                        at = place(first_vector + member, row)
                        before = emit.load(sums, [at], lanes)
                        total = self.operands.scaled(before, next(dots), scaling[member], totals[row])
                        emit.store(sums, [at], total, lanes)

            self._tiles(tile)
        with emit.loop("v", vectors) as v:
            column = emit.bind("column", panel * self.layout.columns + v * lanes)
            for row in range(height):
                self.operands.store(start + row, column, emit.load(sums, [place(v, row)], lanes))

    def _tiles(self, tile: Callable[[Expr | int, range], None]) -> None:
        """``tile(first vector, members)`` for register tiles of all columns of a panel."""
        width = self.config.vectors
        together = math.lcm(width, self.layout.shared)
        with emit.loop("together", self.layout.vectors // together) as number:
            for first in range(0, together, width):
                tile(number * together, range(first, first + width))

    def _segment(
        self,
        initial: Sequence[Expr],
        start: Expr,
        block: Block,
        group: Expr,
        first_vector: Expr | int,
        members: range,
        first: Expr | int,
        count: int,
    ) -> Sequence[Expr]:
        """``initial``, by row and vector of a tile, plus the products of ``count`` steps of one block."""
        products = self.layout.products
        dots = [self.tile.accumulator(value, self.config.largest_operand) for value in initial]
        height = len(dots) // len(members)
        k = group * self.config.group + self.tile.depth * products * first
        codes = [self.operands.row_codes(start + row, k, products * count) for row in range(height)]
        for step in range(count):
            weights = self.operands.unpack(block, first + step, first_vector, members)
            for product in range(products):
                for row in range(height):
                    spread = codes[row](step * products + product)
                    for number, of_vector in enumerate(weights):
                        dots[row * len(members) + number].add(of_vector[product], spread)
        return [accumulator.value() for accumulator in dots]
