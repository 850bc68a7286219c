"""What one linear kernel that decodes its weight is: the problem, and how it is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from planish.codegen.kernels import emit
from planish.codegen.kernels.float_gemm import check_registers
from planish.codegen.kernels.linear_decoded_packing import Blocked, DecodedLayout, bits_of
from planish.codegen.kernels.linear_low_bit_packing import PLANES
from planish.codegen.tiles.float import FloatTile
from planish.ir import NvFp4

_layout = lru_cache(maxsize=64)(DecodedLayout)
"""One for all configurations that share it: there are many to a layer."""


@dataclass(frozen=True)
class LinearDecoded:
    """One kernel: the problem first, then how it is cut.

    Attributes:
        in_features, out_features: K and N.
        encoding: of the weight; its group divides K.
        bias: whether the kernel takes a float32 bias (N,).
        tile: the machine's vectors.
        rows, vectors: largest register tile, in rows of x and in vectors of columns; a panel has ``vectors`` vectors.
        few: rows that share what is decoded in registers; more of them pass over panels that were decoded once.
        one_row_panels: panels side by side where x has one row.
        depth_block: elements of a column that are decoded at once where there are many rows, or one group that is larger.
        task_tiles: row tiles in one task of one thread.
        prefetch: bytes of the weight requested ahead of their use; 0 for none.
    """

    in_features: int
    out_features: int
    encoding: Blocked
    bias: bool
    tile: FloatTile
    rows: int
    vectors: int
    few: int = 4
    one_row_panels: int = 1
    depth_block: int = 256
    task_tiles: int = 32
    prefetch: int = 8192

    def __post_init__(self) -> None:
        sizes = (
            self.in_features,
            self.out_features,
            self.rows,
            self.vectors,
            self.few,
            self.depth_block,
            self.task_tiles,
        )
        if min(sizes) < 1:
            raise ValueError(f"every size of a decoding linear kernel must be at least 1: {self}")
        check_registers(self.tile, max(self.rows, self.few), self.vectors)
        _ = self.packed_shape

    @property
    def layout(self) -> DecodedLayout:
        """The layout of the packed weight."""
        return _layout(self.encoding, self.tile.lanes, self.vectors)

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Shape of the packed weight, uint8: (panels * groups, bytes of a block)."""
        return self.layout.packed_shape(self.out_features, self.in_features)

    @property
    def panels(self) -> int:
        """Panels of the packed weight; the last one may be padded."""
        return self.layout.panels(self.out_features)

    @property
    def groups(self) -> int:
        """Groups of input features."""
        return self.in_features // self.layout.group

    @property
    def block_groups(self) -> int:
        """Groups that are decoded at once where there are many rows."""
        return min(self.groups, max(1, self.depth_block // self.layout.group))

    @property
    def tensor_scale(self) -> bool:
        """Whether the kernel takes a float32 scale (1,) of the whole weight."""
        return isinstance(self.encoding, NvFp4)


def pack_weight(config: LinearDecoded, storage: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A weight in its encoding's storage in the layout that the kernel of ``config`` reads.

    Raises:
        ValueError: when its tensors are not those of ``config``.
    """
    return config.layout.pack(storage, config.out_features, config.in_features)


def configurations(
    tile: FloatTile, in_features: int, out_features: int, encoding: Blocked, bias: bool
) -> list[LinearDecoded]:
    """The kernels worth trying for one layer on one machine; the first is the best guess."""
    shapes = [(6, 4), (12, 2), (8, 3)] if tile.registers >= 32 else [(4, 2), (4, 3)]

    def padding(shape: tuple[int, int]) -> int:
        """Columns computed, in twentieths of those asked for: less waste first, small differences ignored."""
        width = shape[1] * tile.lanes
        return 20 * width * int(emit.ceil_div(out_features, width)) // out_features

    # Codes of several planes are unpacked in so many registers that one panel has to do.
    chains = 8 if len(PLANES[bits_of(encoding)]) == 1 else 1
    return [
        LinearDecoded(
            in_features,
            out_features,
            encoding,
            bias,
            tile,
            rows,
            vectors,
            one_row_panels=max(1, chains // vectors),
            depth_block=depth,
            prefetch=prefetch,
        )
        for rows, vectors in sorted(shapes, key=padding)
        for depth in (256, 512)
        for prefetch in (8192, 4096)
    ]
