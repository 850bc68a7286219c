"""The low-bit linear kernel for one row, which sums the bytes of the weight as they lie (`linear_low_bit_sums`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_operands import FLOAT_OF_ZERO, Operands, in_segments, streamed
from planish.codegen.kernels.linear_low_bit_packing import HIGHEST
from planish.codegen.kernels.linear_low_bit_repeated import Repeated
from planish.codegen.kernels.linear_low_bit_sums import BYTE, Sums
from planish.codegen.kernels.packed_blocks import Block
from planish.codegen.tiles.float import Expr

ROW = 0


class OneRow:
    """The body of the kernel."""

    def __init__(self, operands: Operands, sums: Sums) -> None:
        self.operands, self.config, self.tile = operands, operands.config, operands.tile
        self.floats, self.groups, self.layout = operands.floats, operands.groups, operands.layout
        self.sums, self.columns = sums.sums, sums.columns
        self.most = streamed(self.layout.steps, max(1, self.config.unrolled // self.tile.depth), self.tile)

        def repeated(name: str, copies: int, dtype: str) -> Repeated:
            return Repeated(name, self.tile, self.groups, copies, dtype)

        # Where sums start, by what they start from.
        starts = [each.start for each in self.sums]
        self.starts = {start: repeated("starts", starts.count(start), "int32") for start in sorted(set(starts))}
        # What levels begin with where sums do not start from it, and what zero points multiply, by the factor of a column.
        firsts = [column.first for column in self.columns if column.first]
        self.firsts = {first: repeated("firsts", firsts.count(first), "float32") for first in set(firsts)}
        factors = sorted({column.factor for column in self.columns}) if self.layout.zero_points else []
        self.totals = {factor: repeated("totals", 1, "float32") for factor in factors}

    def body(self) -> None:
        """Emit everything."""
        with emit.loop("group", self.groups) as group:
            self._put(group)
        with emit.tasks("panel", emit.index(self.operands.panels)) as panel:
            self._panel(panel)

    def _put(self, group: Expr) -> None:
        """Store what follows from the sum of the activations in a group."""
        total = self.operands.total(ROW, group)
        for start, places in self.starts.items():
            places.put(group, T.bind(self.operands.start(total, start)))
        for first, places in self.firsts.items():
            places.put(group, T.bind(T.cast(total * T.int32(first), "float32")))
        for factor, places in self.totals.items():
            places.put(group, T.bind(T.cast(T.int32(0) - total, "float32") * T.float32(1 / factor)))

    def _panel(self, panel: Expr) -> None:
        lanes = self.tile.lanes
        sums = emit.scratch("sums", len(self.columns) * lanes)
        for v in range(len(self.columns)):
            emit.store(sums, [v * lanes], self.floats.broadcast(T.float32(0)), lanes)
        with emit.loop("group", self.groups) as group:
            block = self.operands.block(panel, group, once=True)

            def segment(initial: Sequence[Expr], first: Expr | int, count: int) -> Sequence[Expr]:
                return self._segment(initial, block, group, first, count)

            initial = list(_each(self.starts, group, [each.start for each in self.sums]))
            found = in_segments(initial, lanes, self.layout.steps, self.most, segment)
            for v, dot in enumerate(self._dots(self._differences(found), group)):
                scales, zeros = self.operands.scaling(block, v)
                if zeros is not None:
                    # Integers below 2^24: exact.
                    dot = self.floats.fma(zeros, self.totals[self.columns[v].factor].get(group), dot)
                total = self.floats.fma(dot, scales, emit.load(sums, [v * lanes], lanes))
                emit.store(sums, [v * lanes], total, lanes)
        for v, column in enumerate(self.columns):
            place, factor = panel * self.layout.columns + v * lanes, 1.0 if column.first else column.factor
            self.operands.store(emit.index(ROW), place, emit.load(sums, [v * lanes], lanes), factor)

    def _differences(self, sums: Sequence[Expr]) -> list[Expr]:
        """Sums less the ones before them, as float32: integers below 2^24, all exact."""
        zero = self.floats.broadcast(T.float32(FLOAT_OF_ZERO))
        floats = [T.bind(T.reinterpret(f"float32x{self.tile.lanes}", value)) for value in sums]
        return [
            T.bind(value - (zero if each.before is None else floats[each.before]))
            for value, each in zip(floats, self.sums, strict=True)
        ]

    def _dots(self, differences: Sequence[Expr], group: Expr) -> Iterator[Expr]:
        """The sums of levels of each vector of columns, but for a factor where they have nothing to begin with."""
        firsts = _each(self.firsts, group, [column.first for column in self.columns if column.first])
        for column in self.columns:
            (main, _), *others = column.parts
            dot = differences[main]
            for part, factor in others:
                dot = self.floats.fma(differences[part], self.floats.broadcast(T.float32(factor)), dot)
            if column.first:
                dot = self.floats.fma(dot, self.floats.broadcast(T.float32(column.factor)), next(firsts))
            yield dot

    def _segment(
        self, initial: Sequence[Expr], block: Block, group: Expr, first: Expr | int, count: int
    ) -> Sequence[Expr]:
        """``initial`` plus the products of ``count`` steps of one block."""
        dots = []
        for value, each in zip(initial, self.sums, strict=True):
            largest = HIGHEST if self.layout.flipped and each.mask == BYTE else each.mask
            dots.append(self.tile.accumulator(value, largest))
        k = group * self.config.group + self.tile.depth * first
        codes = self.operands.row_codes(emit.index(ROW), k, count)
        for step in range(count):
            spread = codes(step)
            loads = [self.operands.loads(block, first + step, bundle) for bundle in range(self.layout.bundles)]
            for dot, each in zip(dots, self.sums, strict=True):
                dot.add(self.operands.cut(loads[each.bundle][each.load], each.shift, each.mask), spread)
        return [dot.value() for dot in dots]


def _each(numbers: dict[int, Repeated], group: Expr, wanted: Sequence[int]) -> Iterator[Expr]:
    """A vector of each of these numbers in turn, every one loaded from a place of its own."""
    used = dict.fromkeys(numbers, 0)
    for number in wanted:
        yield numbers[number].get(group, used[number])
        used[number] += 1
