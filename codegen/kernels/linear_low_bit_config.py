"""What one low-bit linear kernel of a processor is: the problem, how it is cut, and the packing of its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from planish.codegen.kernels.linear_low_bit_packing import LowBitLayout, code_bits, fields_to_share
from planish.codegen.kernels.linear_low_bit_sums import Sums, sums_of
from planish.codegen.tiles.int8 import Int8Tile
from planish.ir import Grouped

LARGEST_CODE = 127
"""Of an activation."""
LARGEST_FLOAT, LARGEST_SUM = 1 << 24, (1 << 31) - 1
"""float32 holds integers up to the one, int32 up to the other."""
SMALL_SUM = 1 << 22
"""Integers up to here become floats by `linear_low_bit_operands.as_float` without a conversion."""
WIDE_FIELDS = 4
"""Bytes of so many fields have codes of several register tiles of columns, for each of which there is code."""
LONG_GROUP = 128
"""Elements whose products are a loop and not unrolled."""
ENOUGH_PANELS = 16
"""Of one layer, for several threads to have even shares."""
UNPACKED_BYTES = 1 << 17
"""Of unpacked weights in one task, unless a single panel has more: they should stay in a core's own cache."""


def require_sums_fit(encoding: Grouped, factor: int, limit: int) -> None:
    """Raise ValueError unless a group's sum of activations times numbers up to ``factor`` stays within ``limit``."""
    of_one = factor * LARGEST_CODE
    if of_one * encoding.group > limit:
        raise ValueError(
            f"groups of {encoding.group} elements as {encoding} sum to integers that are too large here: use at most "
            f"{limit // of_one}"
        )


_layout = lru_cache(maxsize=64)(LowBitLayout)
"""One for all configurations that share it: there are many to a layer."""


@dataclass(frozen=True)
class LowBitLinear:
    """One low-bit linear kernel: the problem first, then how it is cut.

    Attributes:
        in_features, out_features: K and N.
        encoding: of the weight; its group divides K.
        bias: whether the kernel takes a float32 bias (N,).
        tile: the machine's dot products.
        rows, vectors: largest register tile, in rows of x and in vectors of columns.
        task_panels: panels in one task of one thread when there are more than ``rows`` rows.
        unrolled: elements of a column that are unrolled; a block that has more is a loop over at most so many, or one step.
        prefetch: bytes of the weight requested ahead of their use; 0 for none.
        panel: vectors of columns in a panel at least; it has whole register tiles, and one of each field of a byte.
        many: rows of a register tile on weights that were unpacked before, for at least so many rows: a multiple of two
            where the tile multiplies pairs of rows. 0 where unpacking in registers costs nothing, as other pipes do it.
    """

    in_features: int
    out_features: int
    encoding: Grouped
    bias: bool
    tile: Int8Tile
    rows: int
    vectors: int
    task_panels: int = 2
    unrolled: int = 32
    prefetch: int = 4096
    panel: int = 1
    many: int = 0

    def __post_init__(self) -> None:
        sizes = (
            self.in_features,
            self.out_features,
            self.rows,
            self.vectors,
            self.task_panels,
            self.unrolled,
            self.panel,
        )
        if min(sizes) < 1:
            raise ValueError(f"every size of a low-bit linear kernel must be at least 1: {self}")
        limit = LARGEST_FLOAT if self.layout.zero_points else LARGEST_SUM
        require_sums_fit(self.encoding, max(self.encoding.grid.largest, self.largest_operand), limit)
        if self.many % self.block_rows:
            raise ValueError(f"register tiles of {self.many} rows cannot be cut into blocks of {self.block_rows}")
        _ = self.packed_shape

    @property
    def group(self) -> int:
        """Input features that share a scale."""
        return self.encoding.group

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

    @cached_property
    def layout(self) -> LowBitLayout:
        """The layout of the packed weight."""
        tile = self.tile
        # One row sums bytes as they lie where every field of a byte has a vector of its own.
        whole = math.lcm(self.vectors, fields_to_share(code_bits(self.encoding)))
        vectors = -(-self.panel // whole) * whole
        return _layout(self.encoding, tile.lanes, tile.depth, vectors, tile.weight_range[0] < 0)

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Shape of the packed weight, uint8: (panels * groups, bytes of a block)."""
        return self.layout.packed_shape(self.out_features, self.in_features)

    @property
    def first_level(self) -> int:
        """The level of a weight operand of 0; operands are the distances of levels from there."""
        return self.encoding.grid.first + (128 if self.layout.lowered else 0)

    @property
    def largest_operand(self) -> int:
        """The largest magnitude of an unpacked weight operand."""
        return 128 if self.layout.lowered else self.encoding.grid.step * (self.encoding.grid.count - 1)

    @cached_property
    def sums(self) -> Sums | None:
        """What one row sums of the weight as it lies; None where it has to be unpacked."""
        if self.layout.bits == 8 or self.layout.products > 1 or not self.sums_are_small:
            return None
        found, of_one = sums_of(self.layout, self.encoding.grid, self.tile.takes_bytes), LARGEST_CODE * self.group
        exact = found.largest * of_one <= SMALL_SUM and found.largest_column * of_one <= LARGEST_FLOAT
        return found if exact else None

    @property
    def sums_are_small(self) -> bool:
        """Whether the integers of a group stay below SMALL_SUM."""
        largest = max(self.encoding.grid.largest, self.largest_operand if self.layout.zero_points else 0)
        return largest * LARGEST_CODE * self.group <= SMALL_SUM


def pack_weight(config: LowBitLinear, storage: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A weight in its encoding's storage in the layout that the kernel of ``config`` reads.

    Raises:
        ValueError: when its tensors are not those of ``config``.
    """
    return config.layout.pack(storage, config.out_features, config.in_features)


def configurations(
    tile: Int8Tile, in_features: int, out_features: int, encoding: Grouped, bias: bool
) -> list[LowBitLinear]:
    """The kernels worth trying for one layer on one machine; the first is the best guess."""
    many, panel, shared = 0, 1, fields_to_share(code_bits(encoding))
    if tile.lanes <= 4:
        # Short vectors: several side by side hide the latency of a dot product where there is one row.
        shapes, many = [(4, 4), (3, 4), (2, 8), (6, 2)], 8
    else:
        if tile.floats.registers >= 32:
            narrow = [(6, 2), (5, 2), (12, 1), (8, 1)] if shared == 1 else [(6, 2), (5, 2), (4, 2)]
            shapes = [(3, 4), (4, 4), (6, 2)] if shared >= WIDE_FIELDS else narrow
        else:
            shapes = [(2, 2), (4, 1), (3, 1)] if shared >= WIDE_FIELDS else [(4, 1), (6, 1), (2, 2), (3, 1)]
        # The same, as long as there are panels enough for many threads. Blocks of short groups are unrolled as a whole, with
        # all their requests at the beginning: those of wide panels would be more than a core can have under way.
        widths = (8, 4, 2) if encoding.group >= LONG_GROUP else ()
        panel = next(
            (
                n
                for n in widths
                if out_features % (n * tile.lanes) == 0 and out_features >= ENOUGH_PANELS * n * tile.lanes
            ),
            1,
        )
    return [
        LowBitLinear(
            in_features,
            out_features,
            encoding,
            bias,
            tile,
            rows,
            vectors,
            panels,
            prefetch=prefetch,
            panel=panel,
            many=many,
        )
        for rows, vectors in shapes
        for panels in (2, 4, 1)
        for prefetch in (4096, 8192, 16384)
    ]
