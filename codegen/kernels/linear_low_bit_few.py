"""The low-bit linear kernel for few rows: panels are streamed and unpacked in registers, and the rows share every load.

The arithmetic of one block can fill the processor's window, and it would then ask memory for the next block too late,
so each load also requests the bytes that are due some time later. With more rows than a register tile has, a task keeps a
few panels in cache while all rows pass over them.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self.starts = Repeated("starts", self.tile, self.rows * self.groups, self.config.vectors)
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
            self.starts.put(row * self.groups + group, T.bind(self.operands.start(total)))
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
        lanes, vectors = self.tile.lanes, self.config.vectors
        # More than one row tile are never as low as this, so here is the only one.
        once = height < (self.config.rows + 1) // 2
        sums = emit.scratch("sums", height * vectors * lanes)
        cells = [(row, v, (row * vectors + v) * lanes) for row in range(height) for v in range(vectors)]
        for _, _, at in cells:
            emit.store(sums, [at], self.floats.broadcast(T.float32(0)), lanes)
        with emit.loop("group", self.groups) as group:
            block = self.operands.block(panel, group, once)

            def segment(initial: Sequence[Expr], first: Expr | int, count: int) -> Sequence[Expr]:
                return self._segment(initial, start, block, group, first, count)

            initial = [self.starts.get((start + row) * self.groups + group, v) for row, v, _ in cells]
            steps = self.layout.steps
            most = streamed(steps, self.most, self.tile) if height == 1 else self.most
            dots = in_segments(initial, lanes, steps, most, segment)
            scaling = [self.operands.scaling(block, v) for v in range(vectors)]
            totals = [
                None if self.totals is None else self.totals.get((start + row) * self.groups + group)
                for row in range(height)
            ]
            for (row, v, at), dot in zip(cells, dots, strict=True):
                total = self.operands.scaled(emit.load(sums, [at], lanes), dot, scaling[v], totals[row])
                emit.store(sums, [at], total, lanes)
        for row, v, at in cells:
            column = panel * self.layout.columns + v * lanes
            self.operands.store(start + row, column, emit.load(sums, [at], lanes))

    def _segment(
        self, initial: Sequence[Expr], start: Expr, block: Block, group: Expr, first: Expr | int, count: int
    ) -> Sequence[Expr]:
        """``initial``, by row and vector, plus the products of ``count`` steps of one block."""
        vectors, products = self.config.vectors, self.layout.products
        dots = [self.tile.accumulator(value, self.config.largest_operand) for value in initial]
        height = len(dots) // vectors
        k = group * self.config.group + self.tile.depth * products * first
        codes = [self.operands.row_codes(start + row, k, products * count) for row in range(height)]
        for step in range(count):
            weights = [self.operands.unpack(block, first + step, v) for v in range(vectors)]
            for product in range(products):
                for row in range(height):
                    spread = codes[row](step * products + product)
                    for v in range(vectors):
                        dots[row * vectors + v].add(weights[v][product], spread)
        return [accumulator.value() for accumulator in dots]
