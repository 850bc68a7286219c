"""The linear layer of few bits for many rows: blocks of 64 output features and 64 rows.

A *slot* is 32 places of one group, as many as a product of tensor cores takes; what fills the last slot of a group is zero.
A *chunk*, four slots, lies in shared memory as bytes: each code is unpacked once for all rows of the block. While a chunk is
multiplied, the next one is on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_low_bit_layer import ONES, SLOT, WORD, Layer
from planish.codegen.simt.block import WARP, Block, rounded_bytes
from planish.codegen.tiles.float import Expr

ROWS = COLUMNS = 64
"""Of y, in a block."""
THREADS = 256
SLOTS = 4
"""In a chunk."""
_SLOT_WORDS = SLOT // WORD
_PITCH = SLOTS * _SLOT_WORDS + 4
"""Words from one line of a chunk to the next, so that eight neighbouring lines lie in different banks."""
_FEATURES, _TILE, _TILES = 16, 8, 4
"""A warp has so many output features and so many tiles of 8 rows."""


def _long(place: Expr) -> Expr:
    return T.cast(place, "int64")


class ManyRows:
    """The kernel of one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.layout, self.config = layer, layer.layout, layer.config
        self.of_group = -(-self.config.group // SLOT)
        """Slots of a group."""
        self.slots = self.config.groups * self.of_group
        self.joined = gcd(self.of_group, SLOTS)
        """Neighbouring slots of one group whose sums of activations are added up beforehand."""
        self.steps = SLOT // self.layout.span
        """Steps of a slot."""

    def emit(self) -> None:
        lines = rounded_bytes(2 * COLUMNS * _PITCH, "uint32") + rounded_bytes(2 * ROWS * _PITCH, "uint32")
        numbers = rounded_bytes(2 * SLOTS * COLUMNS, "int32") * 2 + rounded_bytes(2 * SLOTS * ROWS, "int32")
        grid = emit.ceil_div(self.layer.rows, ROWS), emit.ceil_div(self.config.out_features, COLUMNS)
        emit.launch(grid, THREADS, self._tile, lines + numbers)

    def _tile(self, block: Block) -> None:
        self.block = block
        self.row, self.column = (
            math.hold(T.cast(index, "int32") * size) for index, size in zip(block.index, (ROWS, COLUMNS))
        )
        self.weights = block.shared("weights", 2 * COLUMNS * _PITCH, "uint32")
        self.codes = block.shared("codes", 2 * ROWS * _PITCH, "uint32")
        self.scales = block.shared("scales", 2 * SLOTS * COLUMNS)
        self.offsets = block.shared("offsets", 2 * SLOTS * COLUMNS, "int32")
        self.totals = block.shared("totals", 2 * SLOTS * ROWS, "int32")
        self.words = block.registers("words", self.steps * self.layout.loads, "uint32")
        self.activations = block.registers("activations", _SLOT_WORDS, "uint32")
        self.scale, self.offset = block.registers("scale", 1), block.registers("offset", 1, "int32")
        self.total, self.other = block.registers("total", 1, "int32"), block.registers("other", 1, "int32")
        self.left, self.right = (
            block.registers("left", 4, "uint32"),
            block.registers("right", 2 * _TILES, "uint32"),
        )
        self.dots, self.sums = block.registers("dots", 4 * _TILES, "int32"), block.registers("sums", 4 * _TILES)
        with block.phase() as thread:
            for at in range(4 * _TILES):
                self.dots[at], self.sums[at] = T.int32(0), T.float32(0)
            self._fetch(thread, T.int32(0))
        self._put(T.int32(0))
        block.barrier()
        with emit.loop("chunk", emit.ceil_div(self.slots, SLOTS)) as chunk:
            number = math.hold(T.cast(chunk, "int32"))
            with block.phase() as thread:
                self._fetch(thread, number + 1)
            self._multiply(number)
            self._put(1 - number % 2)
            block.barrier()
        with block.phase() as thread:
            for at in range(4 * _TILES):
                row, column = self._place(thread, at)
                self.layer.result(self.sums[at], self.row + row, self.column + column)

    def _fetch(self, thread: Expr, chunk: Expr) -> None:
        """Within a phase: begin to read a chunk, nothing past the last slot."""
        config, layout, layer = self.config, self.layout, self.layer
        slot = math.hold(chunk * SLOTS + thread % SLOTS)
        inner, group = math.hold(slot % self.of_group * SLOT), math.hold(slot // self.of_group)
        layer.load_codes(self.block, self.activations, 0, _SLOT_WORDS, self.row + thread // SLOTS, group, inner)
        slot = math.hold(chunk * SLOTS + thread // COLUMNS)
        # Past the end something is read and used nowhere.
        group = emit.bind("group", _long(T.min(slot // self.of_group, T.int32(config.groups - 1))))
        column = T.min(self.column + thread % COLUMNS, T.int32(config.panels * WARP - 1))
        column = emit.bind("column", _long(column))
        self.scale[0] = layer.scale(group, column)
        if layer.has_offsets:
            self.offset[0] = layer.offset(group, column)
        panel = emit.bind("panel", column // WARP)
        for step in range(self.steps):
            place = math.hold(slot % self.of_group * self.steps + step)
            at = step * layout.loads

            def read(at: int = at, place: Expr = place) -> None:
                layer.load_step(self.block, self.words, at, panel, group, place, thread % WARP)

            def clear(at: int = at) -> None:
                for word in range(layout.loads):
                    self.words[at + word] = T.uint32(0)

            emit.branch(T.And(slot < self.slots, place < layout.steps), read, clear)

    def _put(self, buffer: Expr) -> None:
        """What was read goes to shared memory."""
        block, buffer = self.block, math.hold(buffer)
        with block.phase() as thread:
            slot, column = math.hold(thread // COLUMNS), math.hold(thread % COLUMNS)
            first = math.hold((buffer * COLUMNS + column) * _PITCH + slot * _SLOT_WORDS)
            for step in range(self.steps):
                for product in range(self.layout.products):
                    operand = self.layer.operand(self.words, step * self.layout.loads, product)
                    T.buffer_store(self.weights, operand, [first + (step * self.layout.products + product)])
            cell = math.hold((buffer * SLOTS + slot) * COLUMNS + column)
            T.buffer_store(self.scales, self.scale[0], [cell])
            if self.layer.has_offsets:
                T.buffer_store(self.offsets, self.offset[0], [cell])
            first = math.hold((buffer * ROWS + thread // SLOTS) * _PITCH + thread % SLOTS * _SLOT_WORDS)
            self.total[0] = T.int32(0)
            for word in range(_SLOT_WORDS):
                T.buffer_store(self.codes, self.activations[word], [first + word])
                block.dot_s8(self.total, 0, T.uint32(ONES), self.activations[word])
        if not self.layer.has_offsets:
            return
        mask = 1
        while mask < self.joined:
            block.exchange(self.other, self.total, mask)
            with block.phase():
                self.total[0] = self.total[0] + self.other[0]
            mask *= 2
        with block.phase() as thread:
            cell = (buffer * SLOTS + thread % SLOTS) * ROWS + thread // SLOTS
            T.buffer_store(self.totals, self.total[0], [cell])

    def _multiply(self, chunk: Expr) -> None:
        block, buffer = self.block, math.hold(chunk % 2)
        for slot in range(SLOTS):
            block.load_matrices(self.left, 0, 4, self.weights, self._line(buffer, slot, 0, _FEATURES, True))
            for pair in range(_TILES // 2):
                line = self._line(buffer, slot, pair * 2 * _TILE, _TILES * _TILE, False)
                block.load_matrices(self.right, 4 * pair, 4, self.codes, line)
            for tile in range(_TILES):
                block.products_s8(self.dots, 4 * tile, self.left, 0, self.right, 2 * tile)
            if (slot + 1) % self.joined == 0:
                with block.phase() as thread:
                    self._end(thread, buffer, slot, math.hold(chunk * SLOTS + slot))

    def _line(self, buffer: Expr, slot: int, start: int, of_warp: int, left: bool) -> Callable[[Expr], Expr]:
        """Where a lane's line of 16 bytes begins, in the order of the operands of `products_s8`."""

        def place(thread: Expr) -> Expr:
            warp, matrix = thread // WARP, thread % WARP // _TILE
            across, half = (matrix % 2, matrix // 2) if left else (matrix // 2, matrix % 2)
            line = (warp % 4 if left else warp // 4) * of_warp + start + across * _TILE + thread % _TILE
            return (buffer * ROWS + line) * _PITCH + slot * _SLOT_WORDS + half * (_SLOT_WORDS // 2)

        return place

    def _place(self, thread: Expr, at: int) -> tuple[Expr, Expr]:
        """Row and output feature of a thread's sum of that number, within the block."""
        warp, lane = thread // WARP, thread % WARP
        row = warp // 4 * (_TILES * _TILE) + at // 4 * _TILE + lane % 4 * 2 + at % 2
        return row, warp % 4 * _FEATURES + lane // 4 + at % 4 // 2 * 8

    def _end(self, thread: Expr, buffer: Expr, slot: int, number: Expr) -> None:
        """Slots of one group are done: add what the offset makes of their activations; with the last of them, scale."""
        cells = math.hold((buffer * SLOTS + slot) * COLUMNS)
        columns = [math.hold(cells + self._place(thread, 2 * half)[1]) for half in range(2)]
        if self.layer.has_offsets:
            offsets = [math.hold(self.offsets[column]) for column in columns]
            for at in range(4 * _TILES):
                total = self.totals[(buffer * SLOTS + slot) * ROWS + self._place(thread, at)[0]]
                self.dots[at] = self.dots[at] + offsets[at % 4 // 2] * total

        def scale() -> None:
            scales = [math.hold(self.scales[column]) for column in columns]
            for at in range(4 * _TILES):
                self.layer.add_group(self.sums, at, self.dots[at], scales[at % 4 // 2])
                self.dots[at] = T.int32(0)

        last = True if self.of_group == self.joined else number % self.of_group > self.of_group - 2
        if self.slots % SLOTS:
            inside = number < self.slots
            last = inside if last is True else T.And(inside, last)
        emit.branch(last, scale)
