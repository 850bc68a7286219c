"""The 4-bit linear layer for many rows on machines whose warps multiply in groups of four, straight from shared memory.

A block takes 8 panels, four to each of its two groups, and up to 256 rows. The weight's operand is in registers, unpacked
from shared memory; codes lie there as the products want them. The rows are cut in parts, the columns of one group product,
and two sets of dots take turns: while a group scales and adds the dots of one part, its tensor cores form those of the next.
"""

from __future__ import annotations

from functools import partial

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, MANY_PANELS, SHIFTED, VECTOR, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL, PRODUCT
from planish.codegen.kernels.blocks.linear_int4_tile import RowTile
from planish.codegen.simt.block import LINE, WARP, Block, Registers
from planish.codegen.tiles.float import Expr

PART = 64
"""Rows of a part at most. Two sets of dots and the sums of 256 rows fill a thread's registers."""


class GroupRows(RowTile):
    """The kernel of one layer with `tiles` times 8 rows to a block; a chunk must fill a line."""

    def __init__(self, layer: Layer, tiles: int) -> None:
        super().__init__(layer, tiles, LINE)
        assert self.layout.chunk == LINE
        self.part = min(PART, max(self.rows // 2, 2 * COLUMNS))
        self.parts = self.rows // self.part
        # A step forms the products of one segment and one part.
        self.steps = self.layout.segments * self.parts

    def piece(self, line: Expr, number: Expr) -> Expr:
        # Pieces of a line are exchanged, as group products want them.
        return line * LINE + T.bitwise_xor(number, line % (LINE // VECTOR)) * VECTOR

    def tile(self, block: Block) -> None:
        layout, stages = self.layout, self.stages
        self.allocate(block)
        self.words = block.registers("words", layout.lane_words, "uint32")
        self.stored_scales = block.registers("stored_scales", self.scale_words, "uint32")
        self.operand = block.registers("operand", 2 * 4 * layout.products, "uint32")
        self.dots = block.registers("dots", self.part, "int32")
        self.sums = block.registers("sums", self.rows // 2)
        self.begin(block, self.sums)
        with emit.loop("chunk", layout.chunks) as chunk:
            block.wait(stages - 2)
            block.share()
            block.barrier()
            with block.phase() as thread:
                self._load(block, thread, chunk % stages)
                self._unpack(0)
            codes = emit.bind("codes", chunk % stages * self.codes_bytes)
            self._multiply(block, codes, 0)
            self._unpack_after(block, 0)
            for number in range(self.steps):
                ahead = number + 1 < self.steps
                if ahead:
                    self._multiply(block, codes, number + 1)
                if number == 0:
                    self.copy_ahead(block, chunk)
                dots = number % 2 * (self.part // 2)
                block.group_wait(int(ahead), self.dots, dots, self.part // 2)
                if ahead:
                    self._unpack_after(block, number + 1)
                with block.phase():
                    self._add(number, dots)
        with block.phase() as thread:
            self._store(block, thread)

    def _multiply(self, block: Block, codes: Expr, number: int) -> None:
        """Begin the products of a step."""
        (segment, part), products = divmod(number, self.parts), self.layout.products
        block.group_start()
        for product in range(products):
            beyond = part * self.part * LINE + PRODUCT * (segment * products + product)
            operand = 4 * (segment % 2 * products + product)
            dots = number % 2 * (self.part // 2)
            block.group_products_s8(
                self.dots, dots, self.part, self.operand, operand, self.shared_codes, codes, beyond, fresh=product == 0
            )
        block.group_commit()

    def _unpack_after(self, block: Block, number: int) -> None:
        """When no step behind the one just begun needs the other operand, unpack the next segment into its place."""
        segment, part = divmod(number, self.parts)
        if part == self.parts - 1 and segment + 1 < self.layout.segments:
            with block.phase():
                self._unpack(segment + 1)

    def _add(self, number: int, dots: int) -> None:
        """What a step adds to the sums of its part."""
        segment, part = divmod(number, self.parts)
        scales = [self.layer.scale(self.stored_scales, 0, segment, half) for half in range(2)]
        for at in range(0, self.part // 2, 4):
            self.layer.add_scaled(self.sums, part * (self.part // 2) + at, self.dots, dots + at, scales)

    def _store(self, block: Block, thread: Expr) -> None:
        """Lane 4 g + r of warp w has, of every 8 rows, rows 2 r and 2 r + 1 of output feature g of panel w, then of g + 8."""
        layout, lane = self.layout, thread % WARP
        panel = block.index[1] * MANY_PANELS + T.cast(thread // WARP, "int64")
        column = emit.bind("column", panel * PANEL + T.cast(lane // 4, "int64"))
        row = emit.bind("row", block.index[0] * self.rows + T.cast(lane % 4 * 2, "int64"))

        def store(guarded: bool) -> None:
            for number in range(self.rows // 2):
                at = row + (number // 4 * COLUMNS + number % 2), column + number % 4 // 2 * 8
                inside = T.And(at[0] < self.layer.rows, at[1] < layout.out_features) if guarded else True
                value = self.sums[number] * T.float32(1 / SHIFTED)
                emit.branch(inside, partial(self.layer.result, value, *at))

        inside = (block.index[0] + 1) * self.rows <= self.layer.rows
        if layout.panels % MANY_PANELS or layout.out_features % PANEL:
            inside = T.And(inside, (block.index[1] + 1) * (MANY_PANELS * PANEL) <= layout.out_features)
        emit.branch(inside, partial(store, False), partial(store, True))

    def _load(self, block: Block, thread: Expr, stage: Expr) -> None:
        """The warp's words and stored scales of one chunk."""
        layout = self.layout
        start = stage * self.weight_bytes + T.cast(thread // WARP * layout.chunk_bytes, "int64")
        place = emit.bind("place", start)

        def read(words: Registers, first: int, count: int, byte: Expr) -> None:
            block.load_shared(words, first, count, self.shared_weight, place + T.cast(byte, "int64"))

        self.layer.load_weights(read, self.words, 0, thread % WARP)
        self.layer.load_scales(read, self.stored_scales, 0, thread % WARP)

    def _unpack(self, segment: int) -> None:
        """The operand of one segment, in the place of the segment before the last."""
        products = self.layout.products
        for product in range(products):
            words = 2 * (segment * products + product)
            self.layer.unpack(self.operand, 4 * (segment % 2 * products + product), self.words, words)
