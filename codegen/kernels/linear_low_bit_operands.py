"""Arguments of a low-bit linear kernel, and the steps that few rows and many rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_config import LowBitLinear
from planish.codegen.kernels.linear_low_bit_packing import HIGHEST, Piece
from planish.codegen.kernels.linear_low_bit_sums import BYTE
from planish.codegen.kernels.packed_blocks import Block, PackedBlocks
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr
from planish.codegen.tiles.int8 import Int8Tile

FLOAT_OF_ZERO, BITS_OF_ZERO = 1.5 * 2**23, 0x4B400000
"""A float32 whose neighbours are integers: bits that are n higher, |n| <= 2^22, are those of a float n larger.

Integer sums that start from these bits become floats by one subtraction, which is exact. Conversions have few pipes on
small processors, additions have all.
"""
SERIAL_CODES = 1 << 16
"""Fewer codes than this are summed sooner than a second thread wakes up."""


class Scaling(NamedTuple):
    """What turns the sums of one group and one vector of columns into numbers: scales, and zero points or None."""

    scales: Expr
    zeros: Expr | None


class Operands:
    """The arguments of one kernel."""

    def __init__(self, config: LowBitLinear) -> None:
        self.config, self.tile, self.floats = config, config.tile, config.tile.floats
        self.layout, self.groups = config.layout, config.groups
        self.panels = self.layout.panels(config.out_features)
        self.rows = emit.symbol("rows")
        self.codes = emit.argument("x_codes", (self.rows, config.in_features), "int8")
        self.x_scale = emit.argument("x_scale", (self.rows, 1), "float32")
        self.weight = emit.argument("weight", config.packed_shape, "uint8")
        self.blocks = PackedBlocks(self.weight, self.layout, self.panels, self.groups, config.prefetch)
        self.bias = emit.argument("bias", (config.out_features,), "float32") if config.bias else None
        self.y = emit.argument("y", (self.rows, config.out_features), "float32")

    def total(self, row: Expr, group: Expr) -> Expr:
        """The sum of a row's codes in a group."""
        total = emit.scratch("total", 1, "int32")
        T.buffer_store(total, T.int32(0), [0])
        with emit.loop("k", self.config.group) as k:
            code = T.cast(self.codes[row, group * self.config.group + k], "int32")
            T.buffer_store(total, total[0] + code, [0])
        return T.bind(total[0])

    def start(self, total: Expr, times: int) -> Expr:
        """Where sums of products start that are to be ``times`` the sum of their activations larger."""
        return T.int32(BITS_OF_ZERO if self.config.sums_are_small else 0) + total * T.int32(times)

    def for_rows(self, name: str, count: Expr, body: Callable[[Expr], None]) -> None:
        """``body(i)`` for ``count`` rows, or pairs of them, on several threads where they are many."""
        emit.some_tasks(name, count, self.rows * self.config.in_features <= SERIAL_CODES, body)

    def row_codes(self, row: Expr, k: Expr, count: int) -> Callable[[int], Expr]:
        """A row's codes from ``k`` on in ``count`` parts of one product each: from a part's number to it, in every lane."""
        lanes, depth = self.tile.lanes, self.tile.depth
        together = self.tile.taken // depth
        if count % together:
            together = 1
        loaded: dict[int, Expr] = {}

        def spread(part: int) -> Expr:
            load, place = divmod(part, together)
            if load not in loaded:
                codes = emit.load(self.codes, [row, k + load * together * depth], together * depth)
                kind = f"int{8 * depth}" if together == 1 else f"int{8 * depth}x{together}"
                loaded[load] = T.bind(T.reinterpret(kind, codes))
            one = loaded[load]
            every = T.broadcast(one, lanes) if together == 1 else tirx.Shuffle([one], [T.int32(place)] * lanes)
            return T.bind(T.reinterpret(f"int8x{lanes * depth}", every))

        return spread

    def block(self, panel: Expr, group: Expr, once: bool) -> Block:
        """Where to read one block, and where the one that is due later lies; `once` if no row will read it again."""
        return self.blocks.block(panel, group, once)

    def unpack(self, block: Block, step: Expr | int, first: Expr | int, members: range) -> list[list[Expr]]:
        """The weight operands of one step, one for each product: for the vectors ``first + members`` of columns.

        ``first`` begins a bundle, and ``members`` are of one bundle or make up several.
        """
        layout, found = self.layout, []
        # Levels are the step's multiple of codes.
        times = self.config.encoding.grid.step.bit_length() - 1
        loads: list[Expr] = []
        for number in members:
            bundle, member = divmod(number, layout.shared)
            if number == members.start or member == 0:
                loads = self.loads(block, step, first // layout.shared + bundle, again=member > 0)
                if layout.flipped and not layout.lowered:
                    loads = [T.bind(T.bitwise_xor(packed, self._every(HIGHEST))) for packed in loads]
            found.append([self._operand(loads, pieces, times) for pieces in layout.pieces[member :: layout.shared]])
        return found

    def loads(self, block: Block, step: Expr | int, bundle: int, again: bool = False) -> list[Expr]:
        """The packed bytes of one step of a bundle; ``again`` where they have been read before."""
        size, first = self.layout.vector_bytes, (step * self.layout.bundles + bundle) * self.layout.loads
        this = block._replace(later=None) if again else block
        return [T.bind(self.blocks.read(this, (first + load) * size, size)) for load in range(self.layout.loads)]

    def cut(self, packed: Expr, shift: int, mask: int) -> Expr:
        """Every byte shifted to the right, and what the mask keeps of it then."""
        if mask == BYTE:
            return packed
        return T.bind(T.bitwise_and(self._shifted(packed, -shift), self._every(mask)))

    def _operand(self, loads: Sequence[Expr], pieces: Sequence[Piece], times: int) -> Expr:
        """Codes times ``2 ** times``, from their pieces."""
        if self.layout.uncut and self.tile.inserts and len(pieces) > 1:
            # Pieces meet at the top of a byte, whence one shift brings them down and leaves nothing else.
            upper, lower = pieces
            top = self._shifted(loads[upper.load], 8 - upper.at - upper.width)
            whole = T.bind(self.tile.insert(top, loads[lower.load], upper.width))
            return T.bind(self._field(whole, 8 - self.layout.bits, self.layout.bits, times))
        fields = [self._field(loads[p.load], p.at, p.width, p.shift + times) for p in pieces]
        return T.bind(reduce(T.bitwise_or, fields))

    def _every(self, number: int) -> Expr:
        return T.broadcast(T.uint8(number), self.layout.vector_bytes)

    def _shifted(self, packed: Expr, left: int) -> Expr:
        """Every byte shifted to the left, or by a negative number to the right."""
        if left == 0:
            return packed
        return T.shift_left(packed, self._every(left)) if left > 0 else T.shift_right(packed, self._every(-left))

    def _field(self, packed: Expr, at: int, width: int, to: int) -> Expr:
        """The bits ``at`` to ``at + width - 1`` of every byte, moved to bit ``to`` and alone."""
        if width == 8:
            return packed
        packed = self._shifted(packed, to - at)
        # A shift to the right from the highest bits leaves nothing else.
        alone = to == 0 and at + width == 8
        return packed if alone else T.bitwise_and(packed, self._every(((1 << width) - 1) << to))

    def scaling(self, block: Block, v: int) -> Scaling:
        """Scales and zero points of one vector of columns in one block, as float32."""
        lanes, dtype = self.tile.lanes, self.config.encoding.scale_dtype
        size = lanes * self.layout.scale_bytes
        stored = self.blocks.read(block, self.layout.value_bytes + v * size, size)
        name = str(dtype).removeprefix("torch.")
        vector = T.reinterpret(f"{STORAGE_DTYPES[name]}x{lanes}", stored)
        scales = T.bind(self.floats.widen(vector, name))
        if not self.layout.zero_points:
            return Scaling(scales, None)
        at = self.layout.value_bytes + self.layout.columns * self.layout.scale_bytes + v * lanes
        zeros = T.cast(T.cast(self.blocks.read(block, at, lanes), f"int32x{lanes}"), f"float32x{lanes}")
        return Scaling(scales, T.bind(zeros))

    def scaled(self, sums: Expr, dots: Expr, scaling: Scaling, total: Expr | None) -> Expr:
        """``sums`` plus a group's integer sums times its scales; ``total``, of activations, is asked for by zero points."""
        dot = self.as_float(dots)
        if scaling.zeros is not None:
            # Integers below 2^24: exact.
            dot = self.floats.fma(T.bind(scaling.zeros), total, dot)
        return self.floats.fma(dot, scaling.scales, sums)

    def as_float(self, dots: Expr) -> Expr:
        """Integer sums that started as `start` says, as float32."""
        lanes = self.tile.lanes
        if not self.config.sums_are_small:
            return T.bind(T.cast(dots, f"float32x{lanes}"))
        return T.bind(T.reinterpret(f"float32x{lanes}", dots) - self.floats.broadcast(T.float32(FLOAT_OF_ZERO)))

    def store(self, row: Expr, column: Expr, sums: Expr, factor: float = 1.0) -> None:
        """Emit the last step for one vector of columns, whose sums lack a factor, leaving out those past the end."""
        lanes, of_row = self.tile.lanes, self.x_scale[row, 0]
        scale = self.floats.broadcast(of_row if factor == 1 else T.bind(of_row * T.float32(factor)))
        left = T.cast(T.min(self.config.out_features - column, emit.index(lanes)), "int32")
        whole = self.config.out_features % self.layout.columns == 0
        if self.bias is None:
            value = sums * scale
        elif whole:
            value = self.floats.fma(sums, scale, emit.load(self.bias, [column], lanes))
        else:
            value = self.floats.fma(sums, scale, self.floats.load_first(T.address_of(self.bias[column]), left))
        if whole:
            emit.store(self.y, [row, column], value, lanes)
        else:
            self.floats.store_first(T.address_of(self.y[row, column]), value, left)


def streamed(steps: int, most: int, tile: Int8Tile) -> int:
    """How many steps of one row to unroll, ``most`` at most.

    LLVM takes loops of up to ten passes apart and moves all requests of a block to its beginning. A block of long vectors may
    have more of them than a core can have under way, and the loads behind them wait; a loop of more passes stays one.
    """
    if tile.lanes <= 4:
        return most
    return max((count for count in range(1, most + 1) if steps % count == 0 and steps // count > 10), default=most)


def in_segments(
    initial: Sequence[Expr],
    lanes: int,
    steps: int,
    most: int,
    segment: Callable[[Sequence[Expr], Expr | int, int], Sequence[Expr]],
) -> Sequence[Expr]:
    """``segment(sums, first step, count)`` over all steps, beginning with the vectors of int32 ``initial``.

    Up to ``most`` steps are unrolled. More of them are a loop, lest the code of all register tiles outgrow the instruction
    cache.
    """
    unrolled = max(count for count in range(1, most + 1) if steps % count == 0)
    if unrolled == steps:
        return segment(initial, 0, steps)
    sums = emit.scratch("dots", len(initial) * lanes, "int32")

    def loaded() -> list[Expr]:
        return [emit.load(sums, [number * lanes], lanes) for number in range(len(initial))]

    def keep(values: Sequence[Expr]) -> None:
        for number, value in enumerate(values):
            emit.store(sums, [number * lanes], value, lanes)

    keep(initial)
    with emit.loop("segment", steps // unrolled) as number:
        keep(segment(loaded(), number * unrolled, unrolled))
    return loaded()
