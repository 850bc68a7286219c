"""The 4-bit linear layer for many rows: tiles of panels and rows, whose chunks pass through shared memory in several stages.

Warps side by side take two panels each, and two of them one below the other half of the block's rows each.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, MANY_PANELS, PADDING, SHIFTED, VECTOR, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL
from planish.codegen.kernels.blocks.linear_int4_tile import RowTile
from planish.codegen.simt.block import WARP, Block, Registers
from planish.codegen.tiles.float import Expr

PANELS = 2
"""Panels of a warp."""
ACROSS, DOWN = MANY_PANELS // PANELS, 2
"""Warps of a block along the panels and along the rows."""


class ManyRows(RowTile):
    """The kernel of one layer with `tiles` times 8 rows to a block."""

    def __init__(self, layer: Layer, tiles: int) -> None:
        super().__init__(layer, tiles, layer.config.layout.chunk + PADDING)
        self.tiles = tiles // DOWN
        # Sums of two tiles side by side hide the latency of a product; those of four leave no registers for the rest.
        self.together = 2

    def tile(self, block: Block) -> None:
        layout, stages = self.layout, self.stages
        self.allocate(block)
        self.words = block.registers("words", PANELS * layout.lane_words, "uint32")
        self.stored_scales = block.registers("stored_scales", PANELS * self.scale_words, "uint32")
        self.scales = block.registers("scales", PANELS * layout.segments * 2)
        self.operand = block.registers("operand", PANELS * layout.segments * layout.products * 4, "uint32")
        self.codes = block.registers("lane_codes", self.together * 2 * layout.products, "uint32")
        self.dots = block.registers("dots", self.together * PANELS * 4, "int32")
        self.sums = block.registers("sums", PANELS * self.tiles * 4)
        self.begin(block, self.sums)
        with emit.loop("chunk", layout.chunks) as chunk:
            block.wait(stages - 2)
            block.barrier()
            self.copy_ahead(block, chunk)
            with block.phase() as thread:
                self._unpack(block, thread, chunk % stages)
            self._multiply(block, chunk % stages)
        with block.phase() as thread:
            self._store(block, thread)

    def _unpack(self, block: Block, thread: Expr, stage: Expr) -> None:
        """The warp's operands and scales of one chunk."""
        layout, per_panel = self.layout, self.layout.segments * self.layout.products
        for panel in range(PANELS):
            place = thread // WARP % ACROSS * PANELS + panel
            start = emit.bind("start", stage * self.weight_bytes + T.cast(place * layout.chunk_bytes, "int64"))

            def read(words: Registers, first: int, count: int, byte: Expr, start: Expr = start) -> None:
                block.load_shared(words, first, count, self.shared_weight, start + T.cast(byte, "int64"))

            self.layer.load_weights(read, self.words, panel * layout.lane_words, thread % WARP)
            self.layer.load_scales(read, self.stored_scales, panel * self.scale_words, thread % WARP)
            for product in range(per_panel):
                first = panel * layout.lane_words + 2 * product
                self.layer.unpack(self.operand, 4 * (panel * per_panel + product), self.words, first)
            for segment in range(layout.segments):
                for half in range(2):
                    scale = self.layer.scale(self.stored_scales, panel * self.scale_words, segment, half)
                    self.scales[(panel * layout.segments + segment) * 2 + half] = scale

    def _multiply(self, block: Block, stage: Expr) -> None:
        """Add the products of one chunk, some tiles of rows together."""
        layout = self.layout
        for segment in range(layout.segments):
            for first in range(0, self.tiles, self.together):
                for number in range(self.together):
                    self._read(block, stage, segment, first + number, number)
                for product in range(layout.products):
                    for number in range(self.together):
                        for panel in range(PANELS):
                            of_panel = (panel * layout.segments + segment) * layout.products + product
                            codes = 2 * (number * layout.products + product)
                            dots = 4 * (number * PANELS + panel)
                            block.products_s8(
                                self.dots, dots, self.operand, 4 * of_panel, self.codes, codes, fresh=product == 0
                            )
                with block.phase():
                    for number in range(self.together):
                        for panel in range(PANELS):
                            self._add(segment, first + number, number, panel)

    def _read(self, block: Block, stage: Expr, segment: int, tile: int, number: int) -> None:
        """A lane's codes of one segment and 8 rows: two products at a time, each of two matrices."""
        words = 2 * self.layout.products
        count = min(4, words)
        for part in range(words // count):

            def place(thread: Expr, part: int = part) -> Expr:
                lane, half = thread % WARP, thread // WARP // ACROSS
                line = (half * self.tiles + tile) * COLUMNS + lane % 8
                at = line * self.stride + segment * self.layout.segment + (part * count + lane // 8 % count) * VECTOR
                return stage * self.codes_bytes + T.cast(at, "int64")

            block.load_matrices(self.codes, number * words + part * count, count, self.shared_codes, place)

    def _add(self, segment: int, tile: int, number: int, panel: int) -> None:
        at = (panel * self.tiles + tile) * 4
        for part in range(4):
            dot = T.cast(self.dots[4 * (number * PANELS + panel) + part], "float32")
            scale = self.scales[(panel * self.layout.segments + segment) * 2 + part // 2]
            self.sums[at + part] = math.fma(dot, scale, self.sums[at + part])

    def _store(self, block: Block, thread: Expr) -> None:
        lane = thread % WARP
        half = thread // WARP // ACROSS
        for panel in range(PANELS):
            place = T.cast(thread // WARP % ACROSS * PANELS + panel, "int64")
            for part in range(2):
                feature = T.cast(lane // 4 + 8 * part, "int64")
                column = emit.bind("column", (block.index[1] * MANY_PANELS + place) * PANEL + feature)
                for tile in range(self.tiles):
                    for second in range(2):
                        line = (half * self.tiles + tile) * COLUMNS + lane % 4 * 2 + second
                        row = emit.bind("row", block.index[0] * self.rows + T.cast(line, "int64"))
                        value = self.sums[(panel * self.tiles + tile) * 4 + 2 * part + second]
                        inside = T.And(row < self.layer.rows, column < self.layout.out_features)

                        def store(value: Expr = value, row: Expr = row, column: Expr = column) -> None:
                            self.layer.result(value * T.float32(1 / SHIFTED), row, column)

                        emit.branch(inside, store)
