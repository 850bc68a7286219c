"""Arguments of a 4-bit linear kernel, and the steps that few rows and many rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_int4_config import ZERO_CODE, LinearInt4
from planish.codegen.kernels.linear_int4_packing import SCALE_BYTES
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr, FloatTile

FLOAT_OF_ZERO, BITS_OF_ZERO = 1.5 * 2**23, 0x4B400000
"""A float32 whose neighbours are integers: bits that are n higher, |n| <= 2^22, are those of a float n larger.

Integer sums that start from these bits become floats by one subtraction, which is exact. Conversions have few pipes on
small processors, additions have all.
"""
SERIAL_CODES = 1 << 16
"""Fewer codes than this are summed sooner than a second thread wakes up."""


class Block(NamedTuple):
    """Positions in the packed weight: of the block to read now, and of one to request for later."""

    this: Expr
    later: Expr | None


def as_float(floats: FloatTile, sums: Expr) -> Expr:
    """The float32 values of a vector of integer sums that started from BITS_OF_ZERO."""
    return T.reinterpret(f"float32x{floats.lanes}", sums) - floats.broadcast(T.float32(FLOAT_OF_ZERO))


class Operands:
    """The arguments of one kernel."""

    def __init__(self, config: LinearInt4) -> None:
        self.config, self.tile, self.floats = config, config.tile, config.tile.floats
        self.layout, self.groups = config.layout, config.groups
        self.panels = self.layout.panels(config.out_features)
        self.rows = emit.symbol("rows")
        self.codes = emit.argument("x_codes", (self.rows, config.in_features), "int8")
        self.x_scale = emit.argument("x_scale", (self.rows, 1), "float32")
        self.weight = emit.argument("weight", config.packed_shape, "uint8")
        self.bias = emit.argument("bias", (config.out_features,), "float32") if config.bias else None
        self.y = emit.argument("y", (self.rows, config.out_features), "float32")

    def start(self, row: Expr, group: Expr) -> Expr:
        """Where the sums of a row and a group start, given that weights are stored as q + ZERO_CODE."""
        total = emit.scratch("total", 1, "int32")
        T.buffer_store(total, T.int32(0), [0])
        with emit.loop("k", self.config.group) as k:
            code = T.cast(self.codes[row, group * self.config.group + k], "int32")
            T.buffer_store(total, total[0] + code, [0])
        return T.int32(BITS_OF_ZERO) - total[0] * ZERO_CODE

    def for_rows(self, name: str, count: Expr, body: Callable[[Expr], None]) -> None:
        """``body(i)`` for ``count`` rows, or pairs of them, on several threads where they are many."""
        emit.some_tasks(name, count, self.rows * self.config.in_features <= SERIAL_CODES, body)

    def row_codes(self, row: Expr, k: Expr, parts: int) -> Callable[[int], Expr]:
        """A row's codes from ``k`` on in parts of one step each: from a part's number to the codes, in every lane."""
        lanes, depth = self.tile.lanes, self.tile.depth
        whole = None
        if parts * depth == self.tile.taken:
            whole = T.bind(T.reinterpret(f"int{8 * depth}x{parts}", emit.load(self.codes, [row, k], parts * depth)))

        def spread(part: int) -> Expr:
            if whole is None:
                one = T.reinterpret(f"int{8 * depth}", emit.load(self.codes, [row, k + part * depth], depth))
                every = T.broadcast(one, lanes)
            else:
                every = tirx.Shuffle([whole], [T.int32(part)] * lanes)
            return T.bind(T.reinterpret(f"int8x{lanes * depth}", every))

        return spread

    def block(self, panel: Expr, group: Expr) -> Block:
        """Where to read one block, and where the one that is due ``config.prefetch`` bytes later lies."""
        this = emit.bind("block", panel * self.groups + group)
        if self.config.prefetch == 0:
            return Block(this, None)
        distance, last = -(-self.config.prefetch // self.layout.block_bytes), self.panels * self.groups - 1
        return Block(this, emit.bind("later", T.min(this + distance, emit.index(last))))

    def unpack(self, block: Block, step: Expr | int, v: int) -> tuple[Expr, Expr]:
        """Both weight operands that one load of packed bytes holds."""
        size = self.layout.vector_bytes
        packed = T.bind(self._packed(block, (step * self.config.vectors + v) * size, size))
        low = T.bitwise_and(packed, T.broadcast(T.uint8(0x0F), size))
        return T.bind(low), T.bind(T.shift_right(packed, T.broadcast(T.uint8(4), size)))

    def scales(self, block: Block, v: int) -> Expr:
        """The scales of one vector of columns in one block, as float32."""
        size = self.tile.lanes * SCALE_BYTES[self.config.scale_dtype]
        stored = self._packed(block, self.layout.value_bytes + v * size, size)
        vector = T.reinterpret(f"{STORAGE_DTYPES[self.config.scale_dtype]}x{self.tile.lanes}", stored)
        return T.bind(self.floats.widen(vector, self.config.scale_dtype))

    def _packed(self, block: Block, byte: Expr | int, size: int) -> Expr:
        """``size`` bytes of a block, after a request for those in the same place of the later one."""
        if block.later is not None:
            emit.prefetch(self.weight, [block.later, byte])
        return emit.load(self.weight, [block.this, byte], size)

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
    segment: Callable[[Sequence[Expr], Sequence[Expr | int]], Sequence[Expr]],
) -> Sequence[Expr]:
    """``segment(sums, steps taken)`` over all steps, beginning with the vectors of int32 ``initial``.

    Up to ``most`` steps are unrolled. More of them are a loop, lest the code of all register tiles outgrow the instruction
    cache.
    """
    unrolled = max(count for count in range(1, most + 1) if steps % count == 0)
    if unrolled == steps:
        return segment(initial, range(steps))
    sums = emit.scratch("dots", len(initial) * lanes, "int32")

    def loaded() -> list[Expr]:
        return [emit.load(sums, [number * lanes], lanes) for number in range(len(initial))]

    def keep(values: Sequence[Expr]) -> None:
        for number, value in enumerate(values):
            emit.store(sums, [number * lanes], value, lanes)

    keep(initial)
    with emit.loop("segment", steps // unrolled) as number:
        keep(segment(loaded(), [number * unrolled + step for step in range(unrolled)]))
    return loaded()
