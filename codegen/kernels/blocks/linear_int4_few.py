"""The 4-bit linear layer for few rows: blocks of a panel or two, whose warps share the chunks and add up at the end."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL
from planish.codegen.simt.block import WARP, Block, Registers, rounded_bytes
from planish.codegen.tiles.float import Expr


class FewRows:
    """Some panels to a block, their chunks dealt to the warps in turn; up to 8 `tiles` rows.

    The words of some chunks are always on their way. Codes of few rows are asked for with them, those of more rows, which
    would not fit into the registers, when they are used: they come from a cache.
    """

    def __init__(self, layer: Layer, tiles: int) -> None:
        self.layer, self.config, self.layout, self.tiles = layer, layer.config, layer.config.layout, tiles
        self.panels = 1 if tiles <= 2 else 2
        self.staged = tiles <= 2
        self.depth = max(1, min(self.config.depth, -(-self.layout.chunks // self.config.warps)) // self.panels)
        self.code_words = self.layout.lane_words
        self.scale_words = layer.scale_words * self.layout.segments

    def emit(self) -> None:
        shared = rounded_bytes(self.config.warps * self._cells, "float32")
        groups = emit.ceil_div(self.layout.panels, self.panels)
        emit.launch((groups,), self.config.warps * WARP, self._panels, shared)

    @property
    def _cells(self) -> int:
        """Elements of y that a block computes."""
        return self.panels * PANEL * COLUMNS * self.tiles

    def _panels(self, block: Block) -> None:
        config, layout, depth, panels = self.config, self.layout, self.depth, self.panels
        self.words = block.registers("words", depth * panels * layout.lane_words, "uint32")
        self.scales = block.registers("scales", depth * panels * self.scale_words, "uint32")
        self.codes = block.registers("codes", (depth * self.tiles if self.staged else 1) * self.code_words, "uint32")
        self.sums = block.registers("sums", 4 * self.tiles * panels)
        self.dots = block.registers("dots", 4, "int32")
        self.operand = block.registers("operand", 4 * layout.products * panels, "uint32")
        with block.phase():
            for number in range(self.sums.size):
                self.sums[number] = T.float32(0)
        steps = -(-layout.chunks // config.warps)
        for stage in range(depth):
            self._fill(block, stage, stage)
        with emit.loop("round", -(-steps // depth)) as turn:
            for stage in range(depth):
                self._multiply(block, stage, turn * depth + stage)
                self._fill(block, stage, (turn + 1) * depth + stage)
        self._finish(block)

    def _number(self, thread: Expr, step: Expr | int) -> Expr:
        """Which chunk of a panel a warp takes in a step."""
        return emit.bind("number", T.cast(thread // WARP, "int64") + step * self.config.warps)

    def _fill(self, block: Block, stage: int, step: Expr | int) -> None:
        """Ask for a chunk of every panel; past the end nothing is read, and what is multiplied is zero."""
        chunks = self.layout.chunks
        with block.phase() as thread:
            number = self._number(thread, step)
            always = isinstance(step, int) and (step + 1) * self.config.warps <= chunks
            there = True if always else number < chunks
            emit.branch(there, lambda: self._load(block, stage, number, thread % WARP), lambda: self._clear(stage))

    def _load(self, block: Block, stage: int, number: Expr, lane: Expr) -> None:
        layer, layout = self.layer, self.layout
        for panel in range(self.panels):
            # Panels past the end read the last one again; what they compute is stored nowhere.
            place = block.index[0] * self.panels + panel
            if layout.panels % self.panels:
                place = T.min(place, emit.index(layout.panels - 1))
            chunk = emit.bind("chunk", place * layout.chunks + number)
            at = stage * self.panels + panel

            def read(words: Registers, first: int, count: int, byte: Expr, chunk: Expr = chunk) -> None:
                block.load_vector(words, first, count, layer.weight, (chunk, T.cast(byte, "int64")))

            layer.load_weights(read, self.words, at * layout.lane_words, lane)
            layer.load_scales(read, self.scales, at * self.scale_words, lane)
        if self.staged:
            for tile in range(self.tiles):
                self._load_codes(block, (stage * self.tiles + tile) * self.code_words, tile, number, lane)

    def _load_codes(self, block: Block, first: int, tile: int, number: Expr, lane: Expr) -> None:
        """A lane's codes of one chunk of 8 rows; rows past the end are zero."""
        row = T.cast(tile * COLUMNS + lane // 4, "int64")

        def read() -> None:
            place = emit.bind("place", number * self.layout.chunk + T.cast(lane % 4 * 4, "int64"))
            for word in range(self.code_words):
                block.load_vector(self.codes, first + word, 1, self.layer.codes, (row, place + 16 * word), keep=True)

        def clear() -> None:
            for word in range(self.code_words):
                self.codes[first + word] = T.uint32(0)

        emit.branch(row < self.layer.rows, read, clear)

    def _clear(self, stage: int) -> None:
        for register in (self.words, self.scales, *([self.codes] if self.staged else [])):
            size = register.size // self.depth
            for word in range(size):
                register[stage * size + word] = T.uint32(0)

    def _multiply(self, block: Block, stage: int, step: Expr) -> None:
        layout, products = self.layout, self.layout.products
        for segment in range(layout.segments):
            with block.phase():
                for panel in range(self.panels):
                    first = (stage * self.panels + panel) * layout.lane_words + 2 * segment * products
                    for product in range(products):
                        at = 4 * (panel * products + product)
                        self.layer.unpack(self.operand, at, self.words, first + 2 * product)
            for tile in range(self.tiles):
                first = 2 * segment * products
                if self.staged:
                    first += (stage * self.tiles + tile) * self.code_words
                else:
                    self._load_late(block, tile, step)
                for panel in range(self.panels):
                    self._products(block, stage, segment, panel, tile, first)

    def _load_late(self, block: Block, tile: int, step: Expr) -> None:
        with block.phase() as thread:
            # Of a chunk past the end any codes will do: its weights are zero.
            number = T.min(self._number(thread, step), emit.index(self.layout.chunks - 1))
            self._load_codes(block, 0, tile, number, thread % WARP)

    def _products(self, block: Block, stage: int, segment: int, panel: int, tile: int, first: int) -> None:
        """The products of one segment of one panel and 8 rows, scaled and added."""
        products = self.layout.products
        for product in range(products):
            at = 4 * (panel * products + product)
            block.products_s8(self.dots, 0, self.operand, at, self.codes, first + 2 * product, fresh=product == 0)
        with block.phase():
            at = (stage * self.panels + panel) * self.scale_words
            scales = [self.layer.scale(self.scales, at, segment, half) for half in range(2)]
            self.layer.add_scaled(self.sums, 4 * (panel * self.tiles + tile), self.dots, 0, scales)

    def _finish(self, block: Block) -> None:
        """Add up the warps in their order, and store."""
        warps, cells, width = self.config.warps, self._cells, self.panels * PANEL
        shared = block.shared("partial", warps * cells)
        with block.phase() as thread:
            lane, start = thread % WARP, thread // WARP * cells
            for panel in range(self.panels):
                for tile in range(self.tiles):
                    for number in range(4):
                        row = tile * COLUMNS + lane % 4 * 2 + number % 2
                        feature = panel * PANEL + lane // 4 + 8 * (number // 2)
                        value = self.sums[4 * (panel * self.tiles + tile) + number]
                        T.buffer_store(shared, value, [start + row * width + feature])
        block.barrier()
        total = block.registers("total", 1)
        for turn in range(-(-cells // block.threads)):
            with block.phase() as thread:
                cell = turn * block.threads + thread

                def store(cell: Expr = cell) -> None:
                    total[0] = shared[cell]
                    for warp in range(1, warps):
                        total[0] = total[0] + shared[warp * cells + cell]
                    row = emit.bind("row", T.cast(cell // width, "int64"))
                    column = emit.bind("column", block.index[0] * width + T.cast(cell % width, "int64"))
                    inside = T.And(row < self.layer.rows, column < self.layout.out_features)
                    emit.branch(inside, lambda: self.layer.result(total[0], row, column))

                emit.branch(cell < cells, store)
