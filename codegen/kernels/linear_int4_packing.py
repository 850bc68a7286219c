"""The order in which the 4-bit linear kernel reads its weight, and the packing into it.

A *panel* is ``columns`` output features, a *block* one group of input features of one panel. Blocks follow each other in
the order in which the kernel consumes them, and each carries its own scales, so one thread reads one stream. In a block:

    step s < group / (2 * depth):  vector v < columns / lanes:  lane l < lanes:  byte d < depth
        low four bits:   element k = 2 * depth * s + d             of column n = v * lanes + l
        high four bits:  element k = 2 * depth * s + depth + d     of the same column
    then ``columns`` scales.

So one load, one mask and one shift give the operands of two dot-product steps. Four bits hold q + 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one scale, for every scale dtype a block can carry."""

ZEROS = 0x88
"""Two weights of zero."""

LANE_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""For every supported depth, an integer as wide as the bytes one lane reads."""


@dataclass(frozen=True)
class Int4Layout:
    """Where each element of a packed weight lies.

    Attributes:
        group: input features that share a scale.
        lanes, depth: of the instruction tile that reads the weight.
        vectors: vectors of columns in a panel.
        scale_dtype: float32, float16 or bfloat16.
    """

    group: int
    lanes: int
    depth: int
    vectors: int
    scale_dtype: str

    def __post_init__(self) -> None:
        if self.scale_dtype not in SCALE_BYTES:
            raise ValueError(
                f"no 4-bit linear kernel for scales of {self.scale_dtype}: use one of {', '.join(SCALE_BYTES)}"
            )
        if self.depth not in LANE_WORDS:
            raise ValueError(
                f"no 4-bit linear kernel for dot products of {self.depth} elements: use a tile with a depth of 2, 4 or 8"
            )
        if self.group % (2 * self.depth):
            raise ValueError(
                f"a group of {self.group} cannot be cut into steps of {2 * self.depth} elements, two dot products each: "
                f"choose a group size that is a multiple of {2 * self.depth}"
            )

    @property
    def columns(self) -> int:
        """Output features in one panel."""
        return self.vectors * self.lanes

    @property
    def steps(self) -> int:
        """Loads of one vector of columns in one block."""
        return self.group // (2 * self.depth)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one such load."""
        return self.lanes * self.depth

    @property
    def value_bytes(self) -> int:
        """Bytes of the values of one block; its scales begin there."""
        return self.steps * self.vectors * self.vector_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, scales included."""
        return self.value_bytes + self.columns * SCALE_BYTES[self.scale_dtype]

    def panels(self, out_features: int) -> int:
        """Panels of a weight; the last one is padded with weights of zero."""
        return -(-out_features // self.columns)

    def packed_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """(panels * groups, bytes of a block): the blocks of the first panel, then those of the second, and so on.

        Raises:
            ValueError: when the group does not divide ``in_features``.
        """
        if in_features % self.group:
            raise ValueError(
                f"a group of {self.group} does not divide the {in_features} input features of a 4-bit linear layer: "
                f"choose a group size that divides {in_features}"
            )
        return self.panels(out_features) * (in_features // self.group), self.block_bytes

    def pack(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Pack a weight of shape (N, K).

        Args:
            values: uint8 (N, K / 2), the code ``q + 8`` of an even k in the low four bits of a byte.
            scales: (N, K / group), of ``scale_dtype``.

        Returns:
            uint8 of :meth:`packed_shape`.

        Raises:
            ValueError: when shapes or dtypes do not fit together.
        """
        out_features, in_features = values.shape[0], 2 * values.shape[-1]
        scale_dtype = getattr(torch, self.scale_dtype)
        if values.ndim != 2 or values.dtype != torch.uint8:
            raise ValueError(
                f"4-bit values must be uint8 of shape (N, K / 2), not {values.dtype} {tuple(values.shape)}"
            )
        blocks, block_bytes = self.packed_shape(out_features, in_features)
        panels, groups = self.panels(out_features), in_features // self.group
        if tuple(scales.shape) != (out_features, groups) or scales.dtype != scale_dtype:
            raise ValueError(
                f"the scales of a 4-bit weight ({out_features}, {in_features}) in groups of {self.group} must be "
                f"{self.scale_dtype} of shape ({out_features}, {groups}), not {scales.dtype} {tuple(scales.shape)}"
            )
        padding = panels * self.columns - out_features
        packed = torch.empty((panels, groups, block_bytes), dtype=torch.uint8)
        values = torch.nn.functional.pad(values, (0, 0, 0, padding), value=ZEROS)
        packed[..., : self.value_bytes] = self._interleave(values, panels, groups)
        scales = torch.nn.functional.pad(scales, (0, 0, 0, padding)).reshape(panels, self.columns, groups)
        packed[..., self.value_bytes :] = scales.transpose(1, 2).contiguous().view(torch.uint8)
        return packed.reshape(blocks, block_bytes)

    def _interleave(self, values: torch.Tensor, panels: int, groups: int) -> torch.Tensor:
        """Values (panels * columns, K / 2) in the order of the module's docstring: (panels, groups, value_bytes)."""
        pairs = self.depth // 2
        # A step holds 2 * depth elements of a column: the bytes of its first half, then those of its second half.
        early, late = values.reshape(panels, self.vectors, self.lanes, groups, self.steps, 2, pairs).unbind(5)
        even = (early & 0x0F) | (late << 4)
        odd = (early >> 4) | (late & 0xF0)
        # What one lane reads at once moves as one number: many times faster than byte by byte.
        words = torch.stack((even, odd), dim=-1).flatten(-2).view(LANE_WORDS[self.depth]).squeeze(-1)
        return words.permute(0, 3, 4, 1, 2).contiguous().view(torch.uint8).reshape(panels, groups, self.value_bytes)
