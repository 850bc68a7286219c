"""The 4-bit linear layer for many rows on machines whose warps multiply in groups of four, straight from shared memory.

A block takes 8 panels, four to each of its two groups, and up to 128 rows, the columns of one group product. The weight's
operand is in registers, unpacked from shared memory; codes lie there as the products want them. A group's tensor cores work
while the other one scales its sums.
"""

from __future__ import annotations

from functools import partial

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, MANY_PANELS, VECTOR, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL
from planish.codegen.simt.block import WARP, Block, Registers, rounded_bytes
from planish.codegen.tiles.float import Expr

GROUP_WARPS = 4
"""Warps, and so panels, of a group."""
LINE = 128
"""Bytes of a row's codes in shared memory."""


class GroupRows:
    """The kernel of one layer with `tiles` times 8 rows to a block; a chunk must fill a line."""

    def __init__(self, layer: Layer, tiles: int) -> None:
        self.layer, self.config, self.layout, self.tiles = layer, layer.config, layer.config.layout, tiles
        assert self.layout.chunk == LINE
        self.threads = MANY_PANELS * WARP
        self.rows = tiles * COLUMNS
        self.codes_bytes, self.weight_bytes = self.rows * LINE, MANY_PANELS * self.layout.chunk_bytes
        self.scale_words = layer.scale_words * self.layout.segments

    @property
    def grid(self) -> tuple[Expr, Expr]:
        """Blocks along the rows and along the panels."""
        return emit.ceil_div(self.layer.rows, self.rows), emit.ceil_div(self.layout.panels, MANY_PANELS)

    def emit(self) -> None:
        stages = self.config.stages
        shared = rounded_bytes(stages * self.codes_bytes, "int8") + rounded_bytes(stages * self.weight_bytes, "uint8")
        emit.launch(self.grid, self.threads, self._tile, shared)

    def _tile(self, block: Block) -> None:
        layout, stages = self.layout, self.config.stages
        # First, since lines must begin at a multiple of eight of them.
        self.shared_codes = block.shared("codes", stages * self.codes_bytes, "int8")
        self.shared_weight = block.shared("weight", stages * self.weight_bytes, "uint8")
        self.words = block.registers("words", layout.lane_words, "uint32")
        self.stored_scales = block.registers("stored_scales", self.scale_words, "uint32")
        self.operand = block.registers("operand", 4 * layout.segments * layout.products, "uint32")
        self.dots = block.registers("dots", 4 * self.tiles, "int32")
        self.sums = block.registers("sums", 4 * self.tiles)
        with block.phase():
            for number in range(self.sums.size):
                self.sums[number] = T.float32(0)
        for stage in range(stages - 1):
            if stage < layout.chunks:
                self._copy(block, emit.index(stage), emit.index(stage))
            block.commit()
        with emit.loop("chunk", layout.chunks) as chunk:
            block.wait(stages - 2)
            block.share()
            block.barrier()
            with block.phase() as thread:
                self._unpack(block, thread, chunk % stages)
            for segment in range(layout.segments):
                block.group_start()
                for product in range(layout.products):
                    number = segment * layout.products + product
                    place = chunk % stages * self.codes_bytes + 32 * number
                    block.group_products_s8(
                        self.dots, self.rows, self.operand, 4 * number, self.shared_codes, place, fresh=product == 0
                    )
                if segment == 0:
                    ahead = chunk + (stages - 1)
                    emit.branch(ahead < layout.chunks, partial(self._copy, block, ahead, ahead % stages))
                    block.commit()
                block.group_commit()
                block.group_wait(0)
                with block.phase():
                    scales = [self.layer.scale(self.stored_scales, 0, segment, half) for half in range(2)]
                    for tile in range(self.tiles):
                        self.layer.add_scaled(self.sums, 4 * tile, self.dots, 4 * tile, scales)
        with block.phase() as thread:
            self._store(block, thread)

    def _unpack(self, block: Block, thread: Expr, stage: Expr) -> None:
        """The warp's operands and stored scales of one chunk."""
        layout = self.layout
        start = stage * self.weight_bytes + T.cast(thread // WARP * layout.chunk_bytes, "int64")
        place = emit.bind("place", start)

        def read(words: Registers, first: int, count: int, byte: Expr) -> None:
            block.load_shared(words, first, count, self.shared_weight, place + T.cast(byte, "int64"))

        self.layer.load_weights(read, self.words, 0, thread % WARP)
        self.layer.load_scales(read, self.stored_scales, 0, thread % WARP)
        for product in range(layout.segments * layout.products):
            self.layer.unpack(self.operand, 4 * product, self.words, 2 * product)

    def _copy(self, block: Block, chunk: Expr, stage: Expr) -> None:
        """Begin to copy a chunk of the block's rows, the pieces of a line exchanged, and of its panels."""
        layout = self.layout
        of_row, of_panel = LINE // VECTOR, layout.chunk_bytes // VECTOR

        def copy_codes(number: Expr) -> None:
            line, piece = number // of_row, number % of_row
            row = emit.bind("row", block.index[0] * self.rows + T.cast(line, "int64"))
            exchanged = line * LINE + T.bitwise_xor(piece, line % of_row) * VECTOR
            at = stage * self.codes_bytes + T.cast(exchanged, "int64")
            source = (row, chunk * layout.chunk + T.cast(piece * VECTOR, "int64"))
            block.copy_async(self.shared_codes, at, self.layer.codes, source, row < self.layer.rows)

        def copy_weight(number: Expr) -> None:
            line, place = number // of_panel, T.cast(number % of_panel * VECTOR, "int64")
            # Panels past the end read the last one again; what they compute is stored nowhere.
            panel = T.min(block.index[1] * MANY_PANELS + T.cast(line, "int64"), emit.index(layout.panels - 1))
            at = stage * self.weight_bytes + T.cast(line * layout.chunk_bytes, "int64") + place
            block.copy_async(self.shared_weight, at, self.layer.weight, (panel * layout.chunks + chunk, place))

        with block.phase() as thread:
            for copy, count in ((copy_weight, MANY_PANELS * of_panel), (copy_codes, self.rows * of_row)):
                for turn in range(-(-count // self.threads)):
                    number = turn * self.threads + thread
                    whole = (turn + 1) * self.threads <= count
                    emit.branch(True if whole else number < count, partial(copy, number))

    def _store(self, block: Block, thread: Expr) -> None:
        layer, lane = self.layer, thread % WARP
        panel = block.index[1] * MANY_PANELS + T.cast(thread // WARP, "int64")
        column = emit.bind("column", panel * PANEL + T.cast(lane // 4, "int64"))
        row = emit.bind("row", block.index[0] * self.rows + T.cast(lane % 4 * 2, "int64"))

        def store(guarded: bool) -> None:
            for tile in range(self.tiles):
                for number in range(4):
                    at = row + (tile * COLUMNS + number % 2), column + number // 2 * 8
                    value = self.sums[4 * tile + number]
                    inside = T.And(at[0] < layer.rows, at[1] < self.layout.out_features) if guarded else True
                    emit.branch(inside, partial(layer.result, value, *at))

        inside = (block.index[0] + 1) * self.rows <= layer.rows
        if self.layout.panels % MANY_PANELS or self.layout.out_features % PANEL:
            inside = T.And(inside, (block.index[1] + 1) * (MANY_PANELS * PANEL) <= self.layout.out_features)
        emit.branch(inside, partial(store, False), partial(store, True))
