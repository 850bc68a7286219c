"""The linear layer of few bits for a few rows: a panel to a block, an output feature to a lane.

A *segment* is a group, or an equal part of one. In a round, every warp multiplies some segments of the panel by the rows and
leaves the integers in shared memory; then the first warps, one for each row, continue the chains of their output features in
order. The words of a round are asked for before the chains of the round before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_low_bit_layer import ONES, Layer
from planish.codegen.simt.block import WARP, Block, rounded_bytes
from planish.codegen.tiles.float import Expr

WARPS = 8
_PRODUCTS, _SEGMENTS = 64, 16
"""Words of operands that a warp takes in a round, and segments, both at most, for one row; fewer for more."""


def _long(place: Expr) -> Expr:
    return T.cast(place, "int64")


class FewRows:
    """Up to `height` rows, of which there are at most WARPS."""

    def __init__(self, layer: Layer, height: int) -> None:
        assert height <= WARPS
        self.layer, self.layout, self.height = layer, layer.layout, height
        layout, products = layer.layout, max(layer.layout.products, _PRODUCTS // min(height, 4))
        self.steps = max(s for s in range(1, products // layout.products + 1) if layout.steps % s == 0)
        self.words = self.steps * layout.products
        """Words of operands, and of activations, in a segment."""
        self.of_group = layout.steps // self.steps
        self.segments = layer.config.groups * self.of_group
        most = min(products // self.words, max(1, _SEGMENTS // min(height, 4)), -(-self.segments // WARPS))
        self.each = max(1, most)
        """Segments of a warp in a round."""
        self.round = self.each * WARPS

    def emit(self) -> None:
        words, cells = self.height * self.round * self.words, self.height * self.round
        shared = rounded_bytes(words, "uint32") + rounded_bytes(cells * WARP, "int32") + rounded_bytes(cells, "int32")
        emit.launch((self.layer.config.panels,), WARPS * WARP, self._panel, shared, early=True)

    def _panel(self, block: Block) -> None:
        self.block, cells = block, self.height * self.round
        self.x = block.shared("x_words", cells * self.words, "uint32")
        self.dots = block.shared("dots", cells * WARP, "int32")
        self.totals = block.shared("totals", cells, "int32")
        self.waiting = block.registers("waiting", self.each * self.steps * self.layout.loads, "uint32")
        self.size = next(size for size in (4, 2, 1) if self.words % size == 0)
        self.of_rows = block.registers("of_rows", self.height * self.size, "uint32")
        self.sums = block.registers("sums", self.height, "int32")
        self.one = block.registers("one", 1, "uint32")
        self.dot, self.chain = block.registers("dot", 1, "int32"), block.registers("chain", 1)
        with block.phase() as thread:
            self.chain[0], self.dot[0] = T.float32(0), T.int32(0)
            self._each(thread, T.int32(0), self._read)
        block.wait_for_inputs()
        with emit.loop("turn", emit.ceil_div(self.segments, self.round)) as turn:
            first = math.hold(T.cast(turn, "int32") * self.round)
            with block.phase() as thread:
                self._stage(thread, first)
            block.barrier()
            with block.phase() as thread:
                if self.layer.has_offsets:
                    self._total(thread)
                self._each(thread, first, self._multiply)
                self._each(thread, first + self.round, self._read)
            block.barrier()
            with block.phase() as thread:
                emit.branch(thread < self.height * WARP, partial(self._continue, thread, first))
        with block.phase() as thread:
            emit.branch(thread < self.height * WARP, partial(self._store, thread))

    def _each(self, thread: Expr, first: Expr, visit: Callable[[Expr, int, Expr], None]) -> None:
        """`visit(thread, number, segment)` for the warp's segments of a round."""
        for number in range(self.each):
            segment = math.hold(first + (number * WARPS + thread // WARP))
            emit.branch(segment < self.segments, partial(visit, thread, number, segment))

    def _read(self, thread: Expr, number: int, segment: Expr) -> None:
        panel, group = self.block.index[0], _long(segment // self.of_group)
        for step in range(self.steps):
            place = segment % self.of_group * self.steps + step
            at = (number * self.steps + step) * self.layout.loads
            self.layer.load_step(self.block, self.waiting, at, panel, group, place, thread % WARP)

    def _stage(self, thread: Expr, first: Expr) -> None:
        """The activations of a round go to shared memory."""
        of_row = self.round * self.words
        count = self.height * of_row
        with emit.loop("word", emit.ceil_div(count, WARPS * WARP)) as turn:
            word = math.hold(T.cast(turn, "int32") * (WARPS * WARP) + thread)

            def copy() -> None:
                segment = math.hold(first + word % of_row // self.words)
                inner = math.hold((segment % self.of_group * self.words + word % self.words) * 4)
                self.layer.load_codes(
                    self.block, self.one, 0, 1, word // of_row, math.hold(segment // self.of_group), inner
                )
                T.buffer_store(self.x, self.one[0], [word])

            emit.branch(True if count % (WARPS * WARP) == 0 else word < count, copy)

    def _total(self, thread: Expr) -> None:
        """Sums of the activations of each segment and row."""

        def add() -> None:
            row, segment = thread % self.height, thread // self.height
            start = math.hold((row * self.round + segment) * self.words)
            self.sums[0] = T.int32(0)
            with emit.loop("word", self.words) as word:
                self.block.dot_s8(self.sums, 0, T.uint32(ONES), self.x[start + T.cast(word, "int32")])
            T.buffer_store(self.totals, self.sums[0], [thread])

        assert self.height * self.round <= WARPS * WARP
        emit.branch(thread < self.height * self.round, add)

    def _multiply(self, thread: Expr, number: int, segment: Expr) -> None:
        place = math.hold(number * WARPS + thread // WARP)
        for row in range(self.height):
            self.sums[row] = T.int32(0)
        for word in range(self.words):
            at_once = word % self.size
            if at_once == 0:
                for row in range(self.height):
                    start = (row * self.round + place) * self.words + word
                    self.block.load_shared(self.of_rows, row * self.size, self.size, self.x, start)
            step, product = divmod(word, self.layout.products)
            at = (number * self.steps + step) * self.layout.loads
            operand = self.layer.operand(self.waiting, at, product)
            for row in range(self.height):
                self.block.dot_s8(self.sums, row, operand, self.of_rows[row * self.size + at_once])
        for row in range(self.height):
            T.buffer_store(self.dots, self.sums[row], [(place * self.height + row) * WARP + thread % WARP])

    def _continue(self, thread: Expr, first: Expr) -> None:
        """A chain by the segments of a round."""
        layer, row = self.layer, thread // WARP
        column = emit.bind("column", self.block.index[0] * WARP + _long(thread % WARP))
        with emit.loop("segment", _long(T.min(T.int32(self.round), self.segments - first))) as number:
            place = math.hold(T.cast(number, "int32") * self.height + row)
            segment = math.hold(first + T.cast(number, "int32"))
            group = emit.bind("group", _long(segment // self.of_group))
            self.dot[0] = self.dot[0] + self.dots[place * WARP + thread % WARP]
            if layer.has_offsets:
                self.dot[0] = self.dot[0] + layer.offset(group, column) * self.totals[place]

            def end() -> None:
                layer.add_group(self.chain, 0, self.dot[0], layer.scale(group, column))
                self.dot[0] = T.int32(0)

            whole = self.of_group == 1
            emit.branch(True if whole else segment % self.of_group > self.of_group - 2, end)

    def _store(self, thread: Expr) -> None:
        column = T.cast(self.block.index[0], "int32") * WARP + thread % WARP
        self.layer.result(self.chain[0], thread // WARP, column)
