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

import operator
from collections.abc import Callable
from functools import partial, reduce

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_boxes import BoxTile
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, MANY_PANELS, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL, PRODUCT
from planish.codegen.math import hold
from planish.codegen.simt.block import LINE, WARP, Block, Registers
from planish.codegen.tiles.float import Expr

UPPER, LOWER = 0, 1
"""The two bytes of a weight in units."""
BESIDES, AROUND = 36, 115
"""What a block does besides the products of a chunk, and before and behind its chunks, in the time of products of 8 rows.

These and the next two are fitted to what tiles took on Hopper: they choose among tiles."""
ADDING, ADDED = 230, 1900
"""In the same measure, how long it takes to begin to add up parts; and how many elements are added in it."""
PRODUCTS = LINE // PRODUCT // 2
"""Products of half a chunk."""
WHOLE = 12582912.0
"""Added to a small float32, this leaves its nearest integer in the last bits."""
WHOLE_BITS = 0x4B400000
"""What those bits are for 0."""


class PlaneRows(BoxTile):
    """The kernel of one layer with `tiles` times 8 rows and one of so many parts of the input features to a block."""

    def __init__(self, layer: Layer, tiles: int, parts: int) -> None:
        super().__init__(layer, tiles, parts, gates=1)
        assert self.layout.units
        self.partials: Expr | None = None

    @property
    def time(self) -> Expr:
        down, across, parts = self.grid
        turns = emit.ceil_div(down * across * parts, self.config.multiprocessors)
        time = turns * ((self.rows // COLUMNS + BESIDES) * self.chunks + AROUND)
        if self.parts > 1:
            time = time + ADDING + self.layer.rows * self.layout.out_features // ADDED
        return time

    def emit(self) -> None:
        if self.parts == 1:
            super().emit()
            return
        elements = self.layer.rows * self.layout.out_features
        partials = self.partials = emit.scratch("partials", self.parts * elements)
        super().emit()
        outs = self.layout.out_features
        with emit.tasks("element", elements) as element:
            total = reduce(operator.add, (partials[part * elements + element] for part in range(self.parts)))
            self.layer.result(total, element // outs, element % outs)

    def _keep(self, block: Block) -> Callable[[Expr, Expr, Expr, Expr], None]:
        partials, outs = self.partials, self.layout.out_features
        if partials is None:
            return self.layer.result

        def keep(value: Expr, row: Expr, column: Expr, scale: Expr) -> None:
            T.buffer_store(partials, value, [(block.index[2] * self.layer.rows + row) * outs + column])

        return keep

    def tile(self, block: Block) -> None:
        layout = self.layout
        self.open(block)
        done = block.gates()
        self.words = block.registers("words", layout.lane_words, "uint32")
        self.scales = block.registers("scales", self.scale_words, "uint32")
        self.operand = block.registers("operand", 2 * 2 * PRODUCTS * 4, "uint32")
        self.unit, self.of_feature = block.registers("unit", 1, "uint32"), block.registers("of_feature", 2)
        self.sums = [block.registers(name, self.rows // 2, "int32") for name in ("upper", "lower")]
        self.ask_first(block)
        self.clear(block, *self.sums)
        with block.phase() as thread:
            self._read_units(block, thread, inverted=True)
        self.receive(block, 0)
        with block.phase() as thread:
            self._load(block, thread, 0)
            self._unpack(block, 0)
        with emit.loop("chunk", self.chunks) as chunk:
            self._multiply(block, 0)
            # The products of the chunk before are formed. Those of half a chunk lie between saying so and waiting for others.
            block.arrive(done)
            with block.phase():
                self._unpack(block, 1)
            self.ask_ahead(block, chunk, partial(block.pass_gate, done, chunk))
            emit.branch(chunk + 1 < self.chunks, partial(self.receive, block, 1))
            # Behind the last chunk, what is loaded and unpacked is not used.
            with block.phase() as thread:
                self._load(block, thread, 1)
            self._multiply(block, 1)
            with block.phase():
                self._unpack(block, 0)
            self.stage.advance()
        for sums in self.sums:
            block.group_wait(0, sums, 0, sums.size)
        with block.phase() as thread:
            self._read_units(block, thread, inverted=False)
        self.store(block, self._result, self._keep(block))

    def _multiply(self, block: Block, half: int) -> None:
        """Begin the products of half a chunk, and wait for those of the half before."""
        codes = T.cast(self.stage.of(0) * self.codes_bytes, "int64")
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

    def _load(self, block: Block, thread: Expr, ahead: int) -> None:
        """The words and scales of a warp's panel, of the current chunk or the one ahead."""
        start = self.stage.of(ahead) * self.weight_bytes + thread // WARP * self.layout.chunk_bytes
        place = emit.bind("place", T.cast(start, "int64"))

        def read(words: Registers, first: int, count: int, byte: Expr) -> None:
            block.load_shared(words, first, count, self.shared_weight, place + T.cast(byte, "int64"))

        self.layer.load_weights(read, self.words, 0, thread % WARP)
        self.layer.load_scales(read, self.scales, 0, thread % WARP)

    def _unpack(self, block: Block, half: int) -> None:
        """The operands of half a chunk."""
        layout, layer = self.layout, self.layer
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
                    packed = self.words[2 * (half * PRODUCTS + product) + word]
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

    def _result(self, number: int) -> Expr:
        upper, lower = (T.cast(sums[number], "float32") for sums in self.sums)
        return math.fma(upper, T.float32(256), lower) * self.of_feature[number % 4 // 2]
