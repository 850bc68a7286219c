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
from planish.codegen.kernels.blocks.linear_int4_tile import RowTile
from planish.codegen.simt.block import WARP, Block, Registers
from planish.codegen.tiles.float import Expr

LINE = 128
"""Bytes of a row's codes in shared memory."""


class GroupRows(RowTile):
    """The kernel of one layer with `tiles` times 8 rows to a block; a chunk must fill a line."""

    def __init__(self, layer: Layer, tiles: int) -> None:
        super().__init__(layer, tiles, LINE)
        self.tiles = tiles
        assert self.layout.chunk == LINE

    def piece(self, line: Expr, number: Expr) -> Expr:
        """Pieces of a line are exchanged, as group products want them."""
        return line * LINE + T.bitwise_xor(number, line % (LINE // VECTOR)) * VECTOR

    def tile(self, block: Block) -> None:
        layout, stages = self.layout, self.config.stages
        self.allocate(block)
        self.words = block.registers("words", layout.lane_words, "uint32")
        self.stored_scales = block.registers("stored_scales", self.scale_words, "uint32")
        self.operand = block.registers("operand", 4 * layout.segments * layout.products, "uint32")
        self.dots = block.registers("dots", 4 * self.tiles, "int32")
        self.sums = block.registers("sums", 4 * self.tiles)
        self.begin(block, self.sums)
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
                    self.copy_ahead(block, chunk)
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
