"""The low-bit linear kernel for one row and codes of few bits, most of which are left where they lie in a byte.

A mask takes a field times a power of two; every power has sums of its own, which meet at the end of a group. One row has the
registers for it, and shifts, which have few pipes on small processors, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_operands import BITS_OF_ZERO, Operands, in_segments, streamed
from planish.codegen.kernels.linear_low_bit_repeated import Repeated
from planish.codegen.kernels.packed_blocks import Block
from planish.codegen.tiles.float import Expr

ROW = 0


class OneRow:
    """The body of the kernel."""

    def __init__(self, operands: Operands) -> None:
        self.operands, self.config, self.tile = operands, operands.config, operands.tile
        self.floats, self.groups, self.layout = operands.floats, operands.groups, operands.layout
        self.powers, self.grid = self.config.powers, self.config.encoding.grid
        most = max(1, self.config.unrolled // (self.tile.depth * self.layout.products))
        self.most = streamed(self.layout.steps, most, self.tile)
        vectors = self.config.vectors
        self.cells = [(v, power) for power in self.powers for v in range(vectors)]
        # Where the sums of codes start, and those of codes times greater powers of two.
        self.starts = Repeated("starts", self.tile, self.groups, vectors)
        self.zeros = Repeated("zeros", self.tile, self.groups, len(self.cells) - vectors)
        # Where levels are a multiple of codes, what they begin with is added after the multiplication.
        self.firsts = Repeated("firsts", self.tile, self.groups, vectors, "float32") if self.grid.step > 1 else None

    def body(self) -> None:
        """Emit everything."""
        with emit.loop("group", self.groups) as group:
            self._starts(group)
        with emit.tasks("panel", emit.index(self.operands.panels)) as panel:
            self._panel(panel)

    def _starts(self, group: Expr) -> None:
        total = self.operands.total(ROW, group)
        start = T.bind(self.operands.start(total)) if self.firsts is None else T.int32(BITS_OF_ZERO)
        self.starts.put(group, start)
        self.zeros.put(group, T.int32(0))
        if self.firsts is not None:
            self.firsts.put(group, T.bind(T.cast(total * T.int32(self.grid.first), "float32")))

    def _panel(self, panel: Expr) -> None:
        lanes, vectors = self.tile.lanes, self.config.vectors
        sums = emit.scratch("sums", vectors * lanes)
        for v in range(vectors):
            emit.store(sums, [v * lanes], self.floats.broadcast(T.float32(0)), lanes)
        with emit.loop("group", self.groups) as group:
            block = self.operands.block(panel, group, once=True)

            def segment(initial: Sequence[Expr], first: Expr | int, count: int) -> Sequence[Expr]:
                return self._segment(initial, block, group, first, count)

            initial = [self.starts.get(group, v) for v in range(vectors)]
            initial += [self.zeros.get(group, number) for number in range(len(self.cells) - vectors)]
            found = in_segments(initial, lanes, self.layout.steps, self.most, segment)
            dots = dict(zip(self.cells, found, strict=True))
            for v in range(vectors):
                firsts = None if self.firsts is None else self.firsts.get(group, v)
                dot = self._met([dots[v, power] for power in self.powers], firsts)
                total = self.floats.fma(
                    dot, self.operands.scaling(block, v).scales, emit.load(sums, [v * lanes], lanes)
                )
                emit.store(sums, [v * lanes], total, lanes)
        for v in range(vectors):
            column = panel * self.layout.columns + v * lanes
            self.operands.store(emit.index(ROW), column, emit.load(sums, [v * lanes], lanes))

    def _met(self, dots: Sequence[Expr], firsts: Expr | None) -> Expr:
        """The sums of all powers, lowest first, as the float32 sums of levels, ``firsts`` being those of the first ones."""
        whole, above = dots[-1], self.powers[-1]
        for power, sums in zip(self.powers[-2::-1], dots[-2::-1], strict=True):
            # Multiples of the power: what is shifted out is zero.
            whole = sums + T.shift_right(whole, T.broadcast(T.int32(above - power), self.tile.lanes))
            above = power
        dot = self.operands.as_float(T.bind(whole))
        if firsts is None:
            return dot
        return self.floats.fma(dot, self.floats.broadcast(T.float32(self.grid.step)), firsts)

    def _segment(
        self, initial: Sequence[Expr], block: Block, group: Expr, first: Expr | int, count: int
    ) -> Sequence[Expr]:
        """``initial``, by vector and power, plus the products of ``count`` steps of one block."""
        products, largest = self.layout.products, self.grid.count - 1
        dots = {
            cell: self.tile.accumulator(value, largest << cell[1])
            for cell, value in zip(self.cells, initial, strict=True)
        }
        k = group * self.config.group + self.tile.depth * products * first
        codes = self.operands.row_codes(emit.index(ROW), k, products * count)
        for step in range(count):
            weights = [self.operands.unpack_in_place(block, first + step, v) for v in range(self.config.vectors)]
            for product in range(products):
                spread = codes(step * products + product)
                for v, of_vector in enumerate(weights):
                    weight, power = of_vector[product]
                    dots[v, power].add(weight, spread)
        return [dots[cell].value() for cell in self.cells]
