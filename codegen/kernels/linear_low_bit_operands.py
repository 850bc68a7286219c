"""Arguments of a low-bit linear kernel, and the steps that few rows and many rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_config import LowBitLinear
from planish.codegen.kernels.packed_blocks import Block, PackedBlocks
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr

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

    def start(self, total: Expr | int) -> Expr:
        """Where sums of products start, given the sum of their activations and that operands are not levels."""
        zero = T.int32(BITS_OF_ZERO if self.config.sums_are_small else 0)
        return zero + total * T.int32(self.config.first_level)

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

    def block(self, panel: Expr, group: Expr) -> Block:
        """Where to read one block, and where the one that is due later lies."""
        return self.blocks.block(panel, group)

    def unpack(self, block: Block, step: Expr | int, v: int) -> list[Expr]:
        """The weight operands of one step, one for each product."""
        size, first = self.layout.vector_bytes, (step * self.config.vectors + v) * self.layout.loads
        parts: list[list[Expr]] = [[] for _ in range(self.layout.products)]
        for plane in self.layout.planes:
            for load in range(plane.loads):
                packed = T.bind(self.blocks.read(block, (first + load) * size, size))
                for field in range(plane.fields):
                    part = self._field(packed, field * plane.width, plane.width, plane.shift)
                    parts[load * plane.fields + field].append(part)
            first = first + plane.loads
        return [self._joined(part) for part in parts]

    def _field(self, packed: Expr, at: int, width: int, shift: int) -> Expr:
        """The bits ``at`` to ``at + width - 1`` of every byte, as what they add to an operand."""
        if width == 8:
            return packed
        # Levels are the step's multiple of codes.
        to = shift + self.config.encoding.grid.step.bit_length() - 1

        def every(number: int) -> Expr:
            return T.broadcast(T.uint8(number), self.layout.vector_bytes)

        if to > at:
            packed = T.shift_left(packed, every(to - at))
        elif to < at:
            packed = T.shift_right(packed, every(at - to))
        # A shift to the right from the highest bits leaves nothing else.
        return (
            packed
            if to <= at and to == 0 and at + width == 8
            else T.bitwise_and(packed, every(((1 << width) - 1) << to))
        )

    def unpack_in_place(self, block: Block, step: Expr | int, v: int) -> list[tuple[Expr, int]]:
        """As `unpack`, with fields left where they lie: codes times a power of two, and which. One operation for most."""
        size, first = self.layout.vector_bytes, (step * self.config.vectors + v) * self.layout.loads
        (plane,) = self.layout.planes
        operands = []

        def masked(packed: Expr, at: int) -> tuple[Expr, int]:
            mask = T.broadcast(T.uint8(((1 << plane.width) - 1) << at), size)
            return T.bind(T.bitwise_and(packed, mask)), at

        def shifted(packed: Expr, places: int) -> Expr:
            return T.bind(T.shift_right(packed, T.broadcast(T.uint8(places), size)))

        for load in range(plane.loads):
            packed = T.bind(self.blocks.read(block, (first + load) * size, size))
            half = shifted(packed, 4) if plane.width == 1 else None
            for at in range(0, 8, plane.width):
                if half is not None and at >= 4:
                    # Fewer powers of two are fewer sums side by side.
                    operands.append(masked(half, at - 4))
                elif at + plane.width == 8:
                    operands.append((shifted(packed, at), 0))
                else:
                    operands.append(masked(packed, at))
        return operands

    def _joined(self, parts: Sequence[Expr]) -> Expr:
        joined = parts[0]
        for part in parts[1:]:
            joined = T.bitwise_or(joined, part)
        return T.bind(joined)

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

    def store(self, row: Expr, column: Expr, sums: Expr) -> None:
        """Emit the last step for one vector of columns, leaving out those past the end."""
        lanes, scale = self.tile.lanes, self.floats.broadcast(self.x_scale[row, 0])
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
