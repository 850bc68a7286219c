"""One 4-bit linear layer as blocks of threads see it: its arguments, and what a lane does with a chunk of the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_packing import CHUNKS, BlockInt4Layout
from planish.codegen.pointwise.dtypes import loaded
from planish.codegen.simt.block import WARP, Registers
from planish.codegen.target import BlockLimits
from planish.codegen.tiles.float import Expr

COLUMNS = 8
"""Rows of x in one product."""
VECTOR = 16
"""Bytes of one asynchronous copy."""
PADDING = 16
"""Bytes behind each row of codes in shared memory, so that the eight rows of a matrix lie in different banks."""
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
    groups: bool = False
    stages: int = 4
    shared_bytes: int = 96 << 10
    multiprocessors: int = 1


def configure(layout: BlockInt4Layout, bias: bool, limits: BlockLimits) -> BlockLinearInt4:
    """The kernel for a layer on a machine."""
    groups = limits.group_products and layout.chunk == CHUNKS[0]
    # Tiles of many rows keep the machine busy from few rows on where the layer is wide.
    wide = layout.panels >= MANY_PANELS * limits.multiprocessors // 2
    warps = next(w for w in ((4, 2, 1) if wide else (8, 4, 2, 1)) if w == 1 or layout.chunks >= 2 * w)
    return BlockLinearInt4(
        layout,
        bias,
        warps=warps,
        depth=min(4, -(-layout.chunks // warps)),
        few=((2, 1),) if wide and groups else ((8, 1), (16, 2)) if wide else ((8, 1), (64, 4)),
        tiles=(32, 16, 8, 4, 2) if groups else (16, 8),
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

    def load_weights(self, read: Read, words: Registers, at: int, lane: Expr) -> None:
        """A lane's words of a chunk; `read(words, at, count, byte)` loads from a place of the chunk."""
        size = self.layout.vector_words
        for vector in range(self.layout.lane_words // size):
            read(words, at + vector * size, size, (vector * WARP + lane) * (4 * size))

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

    def result(self, total: Expr, row: Expr, column: Expr) -> None:
        """Emit the store of one element from its sum, SHIFTED times too large."""
        value, scale = total * T.float32(1 / SHIFTED), self.x_scale[row, 0]
        value = value * scale if self.bias is None else math.fma(value, scale, self.bias[column])
        T.buffer_store(self.y, value, [row, column])
