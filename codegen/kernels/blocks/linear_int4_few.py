"""The 4-bit linear layer for few rows: blocks of a panel or two, whose warps share the chunks and add up at the end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, PADDING, SHIFTED, VECTOR, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL
from planish.codegen.simt.block import WARP, Block, Registers, rounded_bytes
from planish.codegen.tiles.float import Expr

Load: TypeAlias = Callable[[Block, int, Expr, Expr], None]
"""Asks for one chunk: of a block, for a stage, by its number, in a thread."""


class FewRows:
    """Some panels and 8 `tiles` rows to a block, its chunks dealt to the warps in turn.

    Some chunks of every warp are always on their way: the words of the weight into registers, the codes into a part of shared
    memory that is the warp's own.
    """

    def __init__(self, layer: Layer, tiles: int) -> None:
        self.layer, self.config, self.layout, self.tiles = layer, layer.config, layer.config.layout, tiles
        self.panels = 1 if tiles <= 2 else 2
        self.depth = max(1, min(self.config.depth, -(-self.layout.chunks // self.config.warps)) // self.panels)
        self.scale_words = layer.scale_words * self.layout.segments
        self.stride = self.layout.chunk + PADDING
        self.stage_bytes = COLUMNS * tiles * self.stride

    def emit(self) -> None:
        warps = self.config.warps
        sums = rounded_bytes(warps * self._cells, "float32")
        codes = rounded_bytes(warps * self.depth * self.stage_bytes, "int8")
        groups = emit.ceil_div(self.layout.panels, self.panels)
        rows = emit.ceil_div(self.layer.rows, COLUMNS * self.tiles)
        # Blocks of the same panels run side by side, and the weight comes once from memory.
        emit.launch((rows, groups), warps * WARP, self._panels, sums + codes, early=True)

    @property
    def _cells(self) -> int:
        """Elements of y that a block computes."""
        return self.panels * PANEL * COLUMNS * self.tiles

    def _panels(self, block: Block) -> None:
        config, layout, depth, panels = self.config, self.layout, self.depth, self.panels
        self.shared_codes = block.shared("codes", config.warps * depth * self.stage_bytes, "int8")
        self.words = block.registers("words", depth * panels * layout.lane_words, "uint32")
        self.scales = block.registers("scales", depth * panels * self.scale_words, "uint32")
        self.codes = block.registers("lane_codes", 2 * layout.products, "uint32")
        self.sums = block.registers("sums", 4 * self.tiles * panels)
        self.dots = block.registers("dots", 4, "int32")
        self.operand = block.registers("operand", 4 * layout.products * panels, "uint32")
        with block.phase():
            for number in range(self.sums.size):
                self.sums[number] = T.float32(0)
        steps = -(-layout.chunks // config.warps)
        for stage in range(depth):
            self._fill(block, stage, stage, self._load)
        block.wait_for_inputs()
        for stage in range(depth):
            self._fill(block, stage, stage, self._copy_codes)
            block.commit()
        with emit.loop("round", -(-steps // depth)) as turn:
            for stage in range(depth):
                block.wait(depth - 1)
                block.warp_barrier()
                self._multiply(block, stage)
                step = (turn + 1) * depth + stage
                self._fill(block, stage, step, self._load)
                self._fill(block, stage, step, self._copy_codes)
                block.commit()
        self._finish(block)

    def _number(self, thread: Expr, step: Expr | int) -> Expr:
        """Which chunk of a panel a warp takes in a step."""
        return emit.bind("number", T.cast(thread // WARP, "int64") + step * self.config.warps)

    def _fill(self, block: Block, stage: int, step: Expr | int, load: Load) -> None:
        """Ask for a chunk of every panel, or of the rows; past the end nothing is read, and the weight is zero."""
        chunks = self.layout.chunks
        with block.phase() as thread:
            number = self._number(thread, step)
            always = isinstance(step, int) and (step + 1) * self.config.warps <= chunks
            clear = partial(self._clear, stage) if load == self._load else None
            emit.branch(True if always else number < chunks, partial(load, block, stage, number, thread), clear)

    def _load(self, block: Block, stage: int, number: Expr, thread: Expr) -> None:
        layer, layout, lane = self.layer, self.layout, thread % WARP
        for panel in range(self.panels):
            # Panels past the end read the last one again; what they compute is stored nowhere.
            place = block.index[1] * self.panels + panel
            if layout.panels % self.panels:
                place = T.min(place, emit.index(layout.panels - 1))
            chunk = emit.bind("chunk", place * layout.chunks + number)
            at = stage * self.panels + panel

            def read(words: Registers, first: int, count: int, byte: Expr, chunk: Expr = chunk) -> None:
                block.load_vector(words, first, count, layer.weight, (chunk, T.cast(byte, "int64")))

            layer.load_weights(read, self.words, at * layout.lane_words, lane)
            layer.load_scales(read, self.scales, at * self.scale_words, lane)

    def _copy_codes(self, block: Block, stage: int, number: Expr, thread: Expr) -> None:
        """Begin to copy the rows' codes of one chunk into the warp's part; rows past the end are zero."""
        layout, layer = self.layout, self.layer
        of_row = layout.chunk // VECTOR
        count = COLUMNS * self.tiles * of_row
        for turn in range(-(-count // WARP)):
            piece = turn * WARP + thread % WARP

            def copy(piece: Expr = piece) -> None:
                line, place = piece // of_row, piece % of_row * VECTOR
                row = emit.bind("row", block.index[0] * (COLUMNS * self.tiles) + T.cast(line, "int64"))
                source = (row, number * layout.chunk + T.cast(place, "int64"))
                at = self._codes_at(thread, stage) + line * self.stride + place
                block.copy_async(self.shared_codes, at, layer.codes, source, row < layer.rows)

            emit.branch(True if (turn + 1) * WARP <= count else piece < count, copy)

    def _codes_at(self, thread: Expr, stage: int) -> Expr:
        """Where a warp's codes of one stage begin."""
        return (thread // WARP * self.depth + stage) * self.stage_bytes

    def _clear(self, stage: int) -> None:
        for register in (self.words, self.scales):
            size = register.size // self.depth
            for word in range(size):
                register[stage * size + word] = T.uint32(0)

    def _multiply(self, block: Block, stage: int) -> None:
        for segment in range(self.layout.segments):
            with block.phase():
                self._unpack(stage, segment)
            for tile in range(self.tiles):
                self._read(block, stage, segment, tile)
                for panel in range(self.panels):
                    self._products(block, stage, segment, panel, tile)

    def _unpack(self, stage: int, segment: int) -> None:
        layout, products = self.layout, self.layout.products
        for panel in range(self.panels):
            first = (stage * self.panels + panel) * layout.lane_words + 2 * segment * products
            for product in range(products):
                at = 4 * (panel * products + product)
                self.layer.unpack(self.operand, at, self.words, first + 2 * product)

    def _read(self, block: Block, stage: int, segment: int, tile: int) -> None:
        """A lane's codes of one segment and 8 rows."""
        layout, words = self.layout, 2 * self.layout.products
        count = min(4, words)
        for part in range(words // count):

            def place(thread: Expr, part: int = part) -> Expr:
                lane = thread % WARP
                piece = part * count + lane // 8 % count
                line = (tile * COLUMNS + lane % 8) * self.stride
                return self._codes_at(thread, stage) + line + segment * layout.segment + piece * VECTOR

            block.load_matrices(self.codes, part * count, count, self.shared_codes, place)

    def _products(self, block: Block, stage: int, segment: int, panel: int, tile: int) -> None:
        """The products of one segment of one panel and 8 rows, scaled and added."""
        products = self.layout.products
        for product in range(products):
            at = 4 * (panel * products + product)
            block.products_s8(self.dots, 0, self.operand, at, self.codes, 2 * product, fresh=product == 0)
        with block.phase():
            at = (stage * self.panels + panel) * self.scale_words
            scales = [self.layer.scale(self.scales, at, segment, half) for half in range(2)]
            self.layer.add_scaled(self.sums, 4 * (panel * self.tiles + tile), self.dots, 0, scales)

    def _finish(self, block: Block) -> None:
        """Add up the warps in their order, and store."""
        warps, cells, width = self.config.warps, self._cells, self.panels * PANEL
        rows = COLUMNS * self.tiles
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
                    row = emit.bind("row", block.index[0] * rows + T.cast(cell // width, "int64"))
                    column = emit.bind("column", block.index[1] * width + T.cast(cell % width, "int64"))
                    inside = T.And(row < self.layer.rows, column < self.layout.out_features)
                    emit.branch(inside, lambda: self.layer.result(total[0] * T.float32(1 / SHIFTED), row, column))

                emit.branch(cell < cells, store)
