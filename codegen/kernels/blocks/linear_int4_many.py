"""The 4-bit linear layer for many rows: tiles of panels and rows, the rows' codes in shared memory, the weight in registers.

Four warps side by side take some panels each, and two of them one below the other half of the block's rows each. While the
products of one chunk are formed, the words of the next and the codes of the next few are on their way.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL
from planish.codegen.simt.block import WARP, Block, rounded_bytes
from planish.codegen.tiles.float import Expr

ACROSS, DOWN = 4, 2
"""Warps of a block along the panels and along the rows."""
VECTOR = 16
"""Bytes of one asynchronous copy."""
# Bytes behind each row of codes, so that lanes that read together read different banks: by the bytes a lane reads in one run.
PADDING = {8: 32, 16: 64, 32: 16}


class ManyRows:
    """The kernel of one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.config, self.layout = layer, layer.config, layer.config.layout
        self.threads = ACROSS * DOWN * WARP
        self.rows = DOWN * self.config.tiles * COLUMNS
        self.panels = ACROSS * self.config.panels
        chunk, padding = self.layout.chunk, PADDING[self.layout.run]
        self.stride = chunk if chunk % 128 == padding else chunk // 128 * 128 + chunk % 128 + padding
        self.scale_words = layer.scale_words * self.layout.segments

    def emit(self) -> None:
        grid = (emit.ceil_div(self.layer.rows, self.rows), emit.ceil_div(self.layout.panels, self.panels))
        shared = rounded_bytes(self.config.stages * self.rows * self.stride, "int8")
        emit.launch(grid, self.threads, self._tile, shared)

    def _tile(self, block: Block) -> None:
        config, layout, stages = self.config, self.layout, self.config.stages
        self.shared = block.shared("codes", stages * self.rows * self.stride, "int8")
        self.words = block.registers("words", config.panels * layout.lane_words, "uint32")
        self.stored_scales = block.registers("stored_scales", config.panels * self.scale_words, "uint32")
        self.scales = block.registers("scales", config.panels * layout.segments * 2)
        self.operand = block.registers("operand", config.panels * layout.segments * layout.products * 4, "uint32")
        self.codes = block.registers("codes", 2 * layout.run // 4, "uint32")
        self.dots = block.registers("dots", 2 * config.panels * 4, "int32")
        self.sums = block.registers("sums", config.panels * config.tiles * 4)
        with block.phase() as thread:
            for number in range(self.sums.size):
                self.sums[number] = T.float32(0)
            self._load(block, thread, emit.index(0))
        for stage in range(stages - 1):
            if stage < layout.chunks:
                self._copy(block, emit.index(stage), emit.index(stage))
            block.commit()
        with emit.loop("chunk", layout.chunks) as chunk:
            block.wait(stages - 2)
            block.barrier()
            ahead = chunk + (stages - 1)
            emit.branch(ahead < layout.chunks, lambda: self._copy(block, ahead, ahead % stages))
            block.commit()
            with block.phase() as thread:
                self._unpack()
                self._load(block, thread, T.min(chunk + 1, emit.index(layout.chunks - 1)))
            self._multiply(block, chunk % stages)
        with block.phase() as thread:
            self._store(block, thread)

    def _panel(self, block: Block, thread: Expr, panel: int) -> Expr:
        return block.index[1] * self.panels + T.cast(thread // WARP % ACROSS * self.config.panels + panel, "int64")

    def _load(self, block: Block, thread: Expr, chunk: Expr) -> None:
        """Ask for the words of a chunk of each panel of the warp."""
        layout = self.layout
        for panel in range(self.config.panels):
            # Panels past the end read the last one; what they compute is stored nowhere.
            place = T.min(self._panel(block, thread, panel), emit.index(layout.panels - 1))
            at = emit.bind("at", place * layout.chunks + chunk)
            self.layer.load_weights(block, self.words, panel * layout.lane_words, at, thread % WARP)
            self.layer.load_scales(block, self.stored_scales, panel * self.scale_words, at, thread % WARP)

    def _unpack(self) -> None:
        layout, per_panel = self.layout, self.layout.segments * self.layout.products
        for panel in range(self.config.panels):
            for product in range(per_panel):
                first = panel * layout.lane_words + 2 * product
                self.layer.unpack(self.operand, 4 * (panel * per_panel + product), self.words, first)
            for segment in range(layout.segments):
                for half in range(2):
                    scale = self.layer.scale(self.stored_scales, panel * self.scale_words, segment, half)
                    self.scales[(panel * layout.segments + segment) * 2 + half] = scale

    def _copy(self, block: Block, chunk: Expr, stage: Expr) -> None:
        """Begin to copy the block's rows of one chunk of codes."""
        layout, vectors = self.layout, self.layout.chunk // VECTOR
        with block.phase() as thread:
            for turn in range(-(-self.rows * vectors // self.threads)):
                number = turn * self.threads + thread

                def copy(number: Expr = number) -> None:
                    line, vector = number // vectors, number % vectors
                    row = emit.bind("row", block.index[0] * self.rows + T.cast(line, "int64"))
                    place = T.cast(vector * VECTOR, "int64")
                    at = (stage * self.rows + T.cast(line, "int64")) * self.stride + place
                    source = (row, chunk * layout.chunk + place)
                    block.copy_async(self.shared, at, self.layer.codes, source, row < self.layer.rows)

                emit.branch((turn + 1) * self.threads <= self.rows * vectors or number < self.rows * vectors, copy)

    def _multiply(self, block: Block, stage: Expr) -> None:
        """Add the products of one chunk, the rows two tiles at a time."""
        layout, config = self.layout, self.config
        for segment in range(layout.segments):
            for pair in range(config.tiles // 2):
                for number in range(2):
                    self._read(block, stage, segment, 2 * pair + number, number)
                for product in range(layout.products):
                    for number in range(2):
                        for panel in range(config.panels):
                            of_panel = (panel * layout.segments + segment) * layout.products + product
                            codes = number * (layout.run // 4) + 2 * product
                            dots = 4 * (number * config.panels + panel)
                            block.products_s8(
                                self.dots, dots, self.operand, 4 * of_panel, self.codes, codes, fresh=product == 0
                            )
                with block.phase():
                    for number in range(2):
                        for panel in range(config.panels):
                            self._add(segment, 2 * pair + number, number, panel)

    def _read(self, block: Block, stage: Expr, segment: int, tile: int, number: int) -> None:
        """A lane's codes of one segment and 8 rows."""
        layout = self.layout
        words = layout.run // 4
        size = min(4, words)
        with block.phase() as thread:
            lane, half = thread % WARP, thread // WARP // ACROSS
            line = (half * self.config.tiles + tile) * COLUMNS + lane // 4
            at = line * self.stride + segment * layout.segment + lane % 4 * layout.run
            place = emit.bind("place", stage * (self.rows * self.stride) + T.cast(at, "int64"))
            for part in range(words // size):
                block.load_shared(self.codes, number * words + part * size, size, self.shared, place + 4 * size * part)

    def _add(self, segment: int, tile: int, number: int, panel: int) -> None:
        config, layout = self.config, self.layout
        at = (panel * config.tiles + tile) * 4
        for part in range(4):
            dot = T.cast(self.dots[4 * (number * config.panels + panel) + part], "float32")
            scale = self.scales[(panel * layout.segments + segment) * 2 + part // 2]
            self.sums[at + part] = math.fma(dot, scale, self.sums[at + part])

    def _store(self, block: Block, thread: Expr) -> None:
        config, lane = self.config, thread % WARP
        half = thread // WARP // ACROSS
        for panel in range(config.panels):
            for part in range(2):
                feature = T.cast(lane // 4 + 8 * part, "int64")
                column = emit.bind("column", self._panel(block, thread, panel) * PANEL + feature)
                for tile in range(config.tiles):
                    for second in range(2):
                        line = (half * config.tiles + tile) * COLUMNS + lane % 4 * 2 + second
                        row = emit.bind("row", block.index[0] * self.rows + T.cast(line, "int64"))
                        value = self.sums[(panel * config.tiles + tile) * 4 + 2 * part + second]
                        inside = T.And(row < self.layer.rows, column < self.layout.out_features)

                        def store(value: Expr = value, row: Expr = row, column: Expr = column) -> None:
                            self.layer.result(value, row, column)

                        emit.branch(inside, store)
