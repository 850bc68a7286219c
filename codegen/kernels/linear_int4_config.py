"""What one 4-bit linear kernel of a processor is: the problem, how it is cut, and the packing of its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planish.codegen.kernels.linear_int4_packing import Int4Layout
from planish.codegen.tiles.int8 import Int8Tile

ZERO_CODE = 8
"""The stored code of a weight of 0."""
LARGEST_GROUP = (1 << 22) // (ZERO_CODE * 127)
"""Sums over a group stay within the integers that `linear_int4_operands.as_float` takes."""
UNPACKED_BYTES = 1 << 17
"""Of unpacked weights in one task, unless a single panel has more: they should stay in a core's own cache."""


@dataclass(frozen=True)
class LinearInt4:
    """One 4-bit linear kernel: the problem first, then how it is cut.

    Attributes:
        in_features, out_features: K and N.
        group: input features that share a scale; divides K.
        scale_dtype: logical dtype of the weight's scales: float32, float16 or bfloat16.
        bias: whether the kernel takes a float32 bias (N,).
        tile: the machine's dot products.
        rows, vectors: largest register tile, in rows of x and in vectors of columns; a panel has ``vectors`` vectors.
        task_panels: panels in one task of one thread when there are more than ``rows`` rows.
        steps: loads of a vector of columns that are unrolled; a block that has more is a loop over at most so many.
        prefetch: bytes of the weight requested ahead of their use; 0 for none.
        many: rows of a register tile on weights that were unpacked before, for at least so many rows: a multiple of two
            where the tile multiplies pairs of rows. 0 where unpacking in registers costs nothing, as other pipes do it.
    """

    in_features: int
    out_features: int
    group: int
    scale_dtype: str
    bias: bool
    tile: Int8Tile
    rows: int
    vectors: int
    task_panels: int = 2
    steps: int = 4
    prefetch: int = 8192
    many: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.in_features, self.out_features, self.group, self.rows, self.vectors, self.task_panels, self.steps)
            < 1
        ):
            raise ValueError(f"every size of a 4-bit linear kernel must be at least 1: {self}")
        if self.group > LARGEST_GROUP:
            raise ValueError(
                f"groups of {self.group} sum to integers that float32 does not hold beside others: use at most "
                f"{LARGEST_GROUP}"
            )
        if self.many % self.block_rows:
            raise ValueError(f"register tiles of {self.many} rows cannot be cut into blocks of {self.block_rows}")
        _ = self.packed_shape

    @property
    def groups(self) -> int:
        """Groups of input features."""
        return self.in_features // self.group

    @property
    def block_rows(self) -> int:
        """Rows that one instruction multiplies where there are many."""
        return 2 if self.tile.multiplies_pairs else 1

    @property
    def unpacked_panels(self) -> int:
        """Panels in one task when there are many rows."""
        return max(1, min(self.task_panels, UNPACKED_BYTES // (self.layout.columns * self.in_features)))

    @property
    def layout(self) -> Int4Layout:
        """The layout of the packed weight."""
        return Int4Layout(self.group, self.tile.lanes, self.tile.depth, self.vectors, self.scale_dtype)

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Shape of the packed weight, uint8: (panels * groups, bytes of a block)."""
        return self.layout.packed_shape(self.out_features, self.in_features)


def pack_weight(config: LinearInt4, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``values`` uint8 (N, K / 2) and ``scales`` (N, K / group) in the layout the kernel of ``config`` reads.

    Raises:
        ValueError: when shapes or dtypes are not those of ``config``.
    """
    if tuple(values.shape) != (config.out_features, config.in_features // 2):
        raise ValueError(
            f"this 4-bit linear kernel packs values of shape ({config.out_features}, {config.in_features // 2}), "
            f"not {tuple(values.shape)}"
        )
    return config.layout.pack(values, scales)


def configurations(
    tile: Int8Tile, in_features: int, out_features: int, group: int, scale_dtype: str, bias: bool
) -> list[LinearInt4]:
    """The kernels worth trying for one layer on one machine; the first is the best guess."""
    many = 0
    if tile.lanes <= 4:
        # Short vectors: several side by side hide the latency of a dot product where there is one row.
        shapes, many = [(4, 4), (3, 4), (2, 8), (6, 2)], 8
    elif tile.floats.registers >= 32:
        shapes = [(6, 2), (5, 2), (12, 1), (8, 1)]
    else:
        shapes = [(4, 1), (6, 1), (2, 2), (3, 1)]
    return [
        LinearInt4(
            in_features,
            out_features,
            group,
            scale_dtype,
            bias,
            tile,
            rows,
            vectors,
            panels,
            prefetch=prefetch,
            many=many,
        )
        for rows, vectors in shapes
        for panels in (2, 4, 1)
        for prefetch in (8192, 4096, 16384)
    ]
