"""One 4-bit linear layer as blocks of threads see it: its arguments, and what a lane does with a chunk of the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_packing import CHUNKS, UNIT_BYTES, BlockInt4Layout
from planish.codegen.pointwise.dtypes import loaded
from planish.codegen.simt.block import WARP, Block, Registers
from planish.codegen.target import BlockLimits
from planish.codegen.tiles.float import Expr

COLUMNS = 8
"""Rows of x in one product."""
VECTOR = 16
"""Bytes of one asynchronous copy."""
PADDING = 16
"""Bytes behind each row of codes in shared memory, so that the eight rows of a matrix lie in different banks."""
LARGEST_SUM = (2**31 - 1) // (255 * 127)
"""Input features whose products of a byte and a code add up in int32."""
PLANES = ((22, 1), (22, 2), (16, 1), (16, 2), (16, 4))
"""`BlockLinearInt4.planes`, where parts have at least LEAST chunks."""
LEAST = 8
MANY_PANELS = 8
"""Panels of a block for many rows."""
SHIFTED = 16
"""What the weights are multiplied with by lying in the high half of a byte."""


Read: TypeAlias = Callable[[Registers, int, int, Expr], None]


@dataclass(frozen=True)
class BlockLinearInt4:
    """One layer: the weight's layout, whether it has a bias, and how blocks are cut.

    Attributes:
        warps, depth: of a block for few rows, and how many chunks of each warp are in flight.
        few: kernels for few rows: (up to so many, in rising order, times 8 rows to a block).
        tiles: times 8 rows of a block for many rows, in falling order: the one whose blocks take the least time.
        planes: for more than `scaled` rows, with scales in the weight: times 8 rows of a block, and in how many parts the
            input features are cut. None if that is not faster.
        scaled: rows up to which each group's sums are scaled.
        groups: whether warps multiply in groups.
        stages: chunks in shared memory at a time, as far as they fit.
        shared_bytes: shared memory of a block.
        multiprocessors: how many blocks run side by side at least.
    """

    layout: BlockInt4Layout
    bias: bool
    warps: int = 8
    depth: int = 4
    few: tuple[tuple[int, int], ...] = ((8, 1), (16, 2), (64, 4))
    tiles: tuple[int, ...] = (16, 8)
    planes: tuple[tuple[int, int], ...] = ()
    scaled: int = 64
    groups: bool = False
    stages: int = 4
    shared_bytes: int = 96 << 10
    multiprocessors: int = 1


def configure(layout: BlockInt4Layout, bias: bool, limits: BlockLimits) -> BlockLinearInt4:
    """The kernel for a layer on a machine."""
    groups = limits.group_products and layout.chunk == CHUNKS[0]
    # Short groups: there are more sums to scale than tensor cores let pass.
    planes = groups and layout.segments > 1 and layout.in_features <= LARGEST_SUM
    # Tiles of many rows keep the machine busy from few rows on where the layer is wide.
    wide = layout.panels >= MANY_PANELS * limits.multiprocessors // 2
    warps = next(w for w in ((4, 2, 1) if wide else (8, 4, 2, 1)) if w == 1 or layout.chunks >= 2 * w)
    return BlockLinearInt4(
        replace(layout, units=planes),
        bias,
        warps=warps,
        depth=min(4, -(-layout.chunks // warps)),
        few=((2, 1),) if wide and groups else ((8, 1), (16, 2)) if wide else ((8, 1), (64, 4)),
        tiles=(8, 4, 2) if planes else (32, 16, 8, 4, 2) if groups else (16, 8),
        planes=tuple((t, parts) for t, parts in PLANES if parts == 1 or layout.chunks % (LEAST * parts) == 0)
        if planes
        else (),
        stages=6 if groups else 4,
        shared_bytes=limits.shared_bytes,
        groups=groups,
        multiprocessors=limits.multiprocessors,
    )


class Layer:
    """The arguments, and what both kernels do with a chunk."""

    def __init__(self, config: BlockLinearInt4) -> None:
        self.config, self.layout = config, config.layout
        self.rows = emit.symbol("rows")
        layout = self.layout
        self.codes = emit.argument("x_codes", (self.rows, layout.in_features), "int8")
        self.x_scale = emit.argument("x_scale", (self.rows, 1), "float32")
        self.weight = emit.argument("weight", layout.shape, "uint8")
        self.bias = emit.argument("bias", (layout.out_features,), "float32") if config.bias else None
        self.y = emit.argument("y", (self.rows, layout.out_features), "float32")

    @property
    def scale_words(self) -> int:
        """Words that hold the scales of two rows."""
        return 2 if self.layout.scale_dtype == "float32" else 1

    def load_weights(self, read: Read, words: Registers, at: int, lane: Expr, half: int | None = None) -> None:
        """A lane's words of a chunk, or of one half of it; `read(words, at, count, byte)` loads from a place of the chunk."""
        size = self.layout.vector_words
        count = self.layout.lane_words // size
        first, count = (0, count) if half is None else (half * count // 2, count // 2)
        for vector in range(count):
            read(words, at + vector * size, size, ((first + vector) * WARP + lane) * (4 * size))

    def load_scales(self, read: Read, words: Registers, at: int, lane: Expr) -> None:
        """For each segment the scales of the lane's two rows, as stored."""
        layout, size = self.layout, self.scale_words
        for segment in range(layout.segments):
            place = (segment * COLUMNS + lane // 4) * (4 * size) + layout.value_bytes
            read(words, at + segment * size, size, place)

    def scale(self, words: Registers, at: int, segment: int, half: int) -> Expr:
        """One of the two scales of a segment as float32."""
        start = at + segment * self.scale_words
        if self.layout.scale_dtype == "float32":
            return T.reinterpret("float32", words[start + half])
        bits = T.cast(T.shift_right(words[start], T.uint32(16 * half)), "uint16")
        if self.layout.scale_dtype == "bfloat16":
            return loaded(bits, torch.bfloat16)
        return T.cast(T.reinterpret("float16", bits), "float32")

    def unpack(self, operand: Registers, at: int, words: Registers, first: int) -> None:
        """The four words of a left operand from the two that a lane has read of it."""
        for half in range(2):
            packed = words[first + half]
            operand[at + 2 * half] = T.bitwise_and(T.shift_left(packed, T.uint32(4)), T.uint32(0xF0F0F0F0))
            operand[at + 2 * half + 1] = T.bitwise_and(packed, T.uint32(0xF0F0F0F0))

    def add_scaled(self, sums: Registers, at: int, dots: Registers, first: int, scales: list[Expr]) -> None:
        """What a segment adds to four sums."""
        for number in range(4):
            dot = T.cast(dots[first + number], "float32")
            sums[at + number] = math.fma(dot, scales[number // 2], sums[at + number])

    def load_unit(self, block: Block, words: Registers, feature: Expr) -> None:
        """The unit of an output feature, as the bits of a float32."""
        place = emit.bind("unit_byte", self.layout.units_start + feature * UNIT_BYTES)
        size = self.layout.chunk_bytes
        block.load_vector(words, 0, 1, self.weight, (place // size, place % size), keep=True)

    def result(self, value: Expr, row: Expr, column: Expr, scale: Expr | None = None) -> None:
        """Emit the store of one element from its sum and the scale of its row, which is loaded if it is not given."""
        scale = self.x_scale[row, 0] if scale is None else scale
        value = value * scale if self.bias is None else math.fma(value, scale, self.bias[column])
        T.buffer_store(self.y, value, [row, column])
