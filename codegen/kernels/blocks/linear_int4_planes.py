"""The 4-bit linear layer in short groups for many rows, on machines whose warps multiply in groups of four.

Where groups are short, scaling and adding each group's sums takes longer than the products. Here the scale goes into the
weight: in whole units of its row, a power of two that was stored with the weight, scales are integers t of at most 4096. Then
q t has 16 bits, whose upper and lower byte are the operands of two integer products each; their sums run over all input
features, and 256 times the one plus the other is the result, in units. Everything up to there is exact. The largest scale
of a row is from 2048 to 4096 units, so that scales of 16-bit floats down to 1024 units are whole; others are rounded, by half
a unit at most.

A block takes 8 panels, four to each of its two groups, and up to 176 rows, whose sums leave registers for the rest. The
operands of half a chunk are unpacked into registers while the products of the half before it are formed.
"""

from __future__ import annotations

from typing import ClassVar

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_groups import LINE, exchanged, store_lanes
from planish.codegen.kernels.blocks.linear_int4_layer import MANY_PANELS, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL, PRODUCT
from planish.codegen.kernels.blocks.linear_int4_tile import RowTile
from planish.codegen.math import hold
from planish.codegen.simt.block import WARP, Block, Registers, rounded_bytes
from planish.codegen.tiles.float import Expr

UPPER, LOWER = 0, 1
"""The two bytes of a weight in units."""
PRODUCTS = LINE // PRODUCT // 2
"""Products of half a chunk."""
WHOLE = 12582912.0
"""Added to a small float32, this leaves its nearest integer in the last bits."""
WHOLE_BITS = 0x4B400000
"""What those bits are for 0."""


class PlaneRows(RowTile):
    """The kernel of one layer with `tiles` times 8 rows to a block; a chunk must fill a line."""

    beside_bytes: ClassVar[int] = rounded_bytes(1, "uint64")

    def __init__(self, layer: Layer, tiles: int) -> None:
        super().__init__(layer, tiles, LINE)
        assert self.layout.chunk == LINE and self.layout.units
        # A chunk's place is filled again when both groups are done with it, one of which may still multiply the chunk before.
        self.ahead = self.stages - 2

    def piece(self, line: Expr, number: Expr) -> Expr:
        return exchanged(line, number)

    def tile(self, block: Block) -> None:
        layout, stages = self.layout, self.stages
        self.allocate(block)
        gate = block.gate()
        self.words = block.registers("words", layout.lane_words // 2, "uint32")
        self.scales = block.registers("scales", self.scale_words, "uint32")
        self.operand = block.registers("operand", 2 * 2 * PRODUCTS * 4, "uint32")
        self.unit, self.of_feature = block.registers("unit", 1, "uint32"), block.registers("of_feature", 2)
        self.sums = [block.registers(name, self.rows // 2, "int32") for name in ("upper", "lower")]
        with block.phase() as thread:
            self._read_units(block, thread, inverted=True)
        self.begin(block, *self.sums)
        block.wait(self.ahead - 1)
        block.share()
        block.barrier()
        with block.phase() as thread:
            self._unpack(block, thread, emit.index(0), 0)
        with emit.loop("chunk", layout.chunks) as chunk:
            codes = emit.bind("codes", chunk % stages * self.codes_bytes)
            self._multiply(block, codes, 0)
            # Half a chunk lies between a thread's arrival and its wait, so that the two groups need not keep in step.
            block.wait(self.ahead - 2)
            block.share()
            block.arrive(gate)
            self.copy_ahead(block, chunk)
            with block.phase() as thread:
                self._unpack(block, thread, chunk % stages, 1)
            self._multiply(block, codes, 1)
            block.pass_gate(gate, chunk)
            # Behind the last chunk, what is unpacked is not used.
            with block.phase() as thread:
                self._unpack(block, thread, (chunk + 1) % stages, 0)
        for sums in self.sums:
            block.group_wait(0, sums, 0, sums.size)
        with block.phase() as thread:
            self._read_units(block, thread, inverted=False)
            store_lanes(self.layer, block, thread, self.rows, self._result)

    def _multiply(self, block: Block, codes: Expr, half: int) -> None:
        """Begin the products of half a chunk, and wait for those of the half before."""
        block.group_start()
        for plane in (UPPER, LOWER):
            for product in range(PRODUCTS):
                beyond = (half * PRODUCTS + product) * PRODUCT
                operand = self._operand(half, plane, product)
                block.group_products_s8(
                    self.sums[plane], 0, self.rows, self.operand, operand, self.shared_codes, codes, beyond,
                    positive=plane == LOWER,
                )  # fmt: skip
        block.group_commit()
        block.group_wait(1, self.sums[UPPER], 0, 0)

    def _operand(self, half: int, plane: int, product: int) -> int:
        return 4 * ((half * 2 + plane) * PRODUCTS + product)

    def _unpack(self, block: Block, thread: Expr, stage: Expr, half: int) -> None:
        """The operands of half a chunk of a warp's panel."""
        layout, layer, lane = self.layout, self.layer, thread % WARP
        start = stage * self.weight_bytes + T.cast(thread // WARP * layout.chunk_bytes, "int64")
        place = emit.bind("place", start)

        def read(words: Registers, first: int, count: int, byte: Expr) -> None:
            block.load_shared(words, first, count, self.shared_weight, place + T.cast(byte, "int64"))

        layer.load_weights(read, self.words, 0, lane, half)
        layer.load_scales(read, self.scales, 0, lane)
        for product in range(PRODUCTS):
            segment = (half * PRODUCTS + product) * PRODUCT // layout.segment
            upper, lower = (self._operand(half, plane, product) for plane in (UPPER, LOWER))
            for feature in range(2):
                scale = math.fma(
                    layer.scale(self.scales, 0, segment, feature), self.of_feature[feature], T.float32(WHOLE)
                )
                times = hold(T.reinterpret("uint32", scale) - T.uint32(WHOLE_BITS))
                # 2^15 more than (field - 8) times, in each half of a word, of fields that are 8 more than the weight.
                more = hold(T.uint32(0x80008000) - times * T.uint32(0x00080008))
                for word in range(2):
                    packed = self.words[2 * product + word]
                    shifts = (4 * feature + 8 * odd for odd in range(2))
                    fields = (T.shift_right(packed, T.uint32(shift)) if shift else packed for shift in shifts)
                    first, second = (block.fields_times(f, times, more) for f in fields)
                    at = 2 * word + feature
                    above = block.bytes_of_two(first, second, (1, 5, 3, 7))
                    self.operand[upper + at] = T.bitwise_xor(above, T.uint32(0x80808080))
                    self.operand[lower + at] = block.bytes_of_two(first, second, (0, 4, 2, 6))

    def _read_units(self, block: Block, thread: Expr, inverted: bool) -> None:
        """The units of the lane's two output features, or one by them, which is exact."""
        panel = block.index[1] * MANY_PANELS + T.cast(thread // WARP, "int64")
        panel = T.min(panel, emit.index(self.layout.panels - 1))
        for feature in range(2):
            self.layer.load_unit(block, self.unit, panel * PANEL + T.cast(thread % WARP // 4 + 8 * feature, "int64"))
            unit = T.reinterpret("float32", self.unit[0])
            self.of_feature[feature] = T.float32(1) / unit if inverted else unit

    def _result(self, number: int, row: Expr, column: Expr) -> None:
        upper, lower = (T.cast(sums[number], "float32") for sums in self.sums)
        self.layer.result(math.fma(upper, T.float32(256), lower), row, column, self.of_feature[number % 4 // 2])
