"""How a 4-bit weight lies for products of 16 x 32 by 32 x 8 bytes (`Block.products_s8`), and the packing into it.

A *panel* is 16 output features, a *chunk* 32, 64 or 128 input features of it: 1, 2 or 4 products. A *segment* is the part of
a chunk that shares scales. For a chunk, with t = 4 g + r:

    vector v:  lane t:  product p of the vector:  half h < 2:  byte b < 4
        low four bits:   row g, feature 16 h + 4 r + b of the product, in two's complement
        high four bits:  the same feature of row g + 8
    segment s:  row g < 8:  the scales of rows g and g + 8

A shift or a mask leaves 16 q in each byte of an operand. Behind all chunks there may be, for each output feature, the unit
that its scales are counted in where they go into the weight: a power of two as float32, of which its largest scale has from
2048 to 4096.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one scale, for every scale dtype a chunk can carry."""
ZEROS = 0x88
"""Two weights of zero."""
PANEL, PRODUCT = 16, 32
"""Output and input features of one product."""
CHUNKS = (128, 64, 32)
UNIT_BYTES = 4
"""Bytes of a unit."""
UNIT_BITS = 11
"""The largest scale has so many bits, and one more, in units."""
EXPONENTS = -126, 126
"""Exponents of units: one by a unit has to be a float32 too."""


@dataclass(frozen=True)
class BlockInt4Layout:
    """Where each element of a packed weight lies.

    Attributes:
        out_features, in_features: N and K.
        group: input features that share a scale.
        scale_dtype: float32, float16 or bfloat16.
        units: whether the units of the output features follow.
    """

    out_features: int
    in_features: int
    group: int
    scale_dtype: str
    units: bool = False

    def __post_init__(self) -> None:
        if self.scale_dtype not in SCALE_BYTES:
            known = ", ".join(SCALE_BYTES)
            raise ValueError(f"no 4-bit linear kernel for scales of {self.scale_dtype}: use one of {known}")
        if self.group % PRODUCT or self.in_features % self.group:
            raise ValueError(
                f"groups of {self.group} of {self.in_features} input features cannot be cut into products of {PRODUCT}: "
                f"choose a group size that is a multiple of {PRODUCT} and divides {self.in_features}"
            )

    @property
    def chunk(self) -> int:
        """Input features of a chunk."""
        fitting = (c for c in CHUNKS if self.in_features % c == 0 and (self.group % c == 0 or c % self.group == 0))
        return next(fitting)

    @property
    def segment(self) -> int:
        """Input features of a segment."""
        return min(self.group, self.chunk)

    @property
    def segments(self) -> int:
        return self.chunk // self.segment

    @property
    def products(self) -> int:
        """Products of a segment."""
        return self.segment // PRODUCT

    @property
    def lane_words(self) -> int:
        """Words of four bytes that one lane reads of a chunk: two a product."""
        return 2 * self.chunk // PRODUCT

    @property
    def vector_words(self) -> int:
        """Words that one lane reads at once."""
        return min(4, self.lane_words)

    @property
    def value_bytes(self) -> int:
        return PANEL * self.chunk // 2

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, scales included."""
        return self.value_bytes + self.segments * PANEL * SCALE_BYTES[self.scale_dtype]

    @property
    def panels(self) -> int:
        """Panels of the weight; the last one is padded with weights of zero."""
        return -(-self.out_features // PANEL)

    @property
    def chunks(self) -> int:
        """Chunks of a panel."""
        return self.in_features // self.chunk

    @property
    def units_start(self) -> int:
        """The byte at which units begin."""
        return self.panels * self.chunks * self.chunk_bytes

    @property
    def shape(self) -> tuple[int, int]:
        """(panels * chunks, and as many more as units fill; bytes of a chunk)."""
        units = self.panels * PANEL * UNIT_BYTES if self.units else 0
        return self.panels * self.chunks + -(-units // self.chunk_bytes), self.chunk_bytes

    def pack(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Pack ``values`` uint8 (N, K / 2), the code q + 8 of an even feature in the low bits, and ``scales`` (N, K / group).

        Returns:
            uint8 of `shape`.
        """
        padding = self.panels * PANEL - self.out_features
        # q + 8 and the two's complement of q differ in the highest of four bits.
        values = torch.nn.functional.pad(values, (0, 0, 0, padding), value=ZEROS) ^ ZEROS
        codes = torch.stack((values & 15, values >> 4), dim=-1)
        codes = codes.reshape(self.panels, 2, 8, self.chunks, self.chunk // PRODUCT, 2, 4, 4)
        pairs = codes[:, 0] | codes[:, 1] << 4
        # [panel, g, chunk, product, h, r, b] to [panel, chunk, vector, g, r, product of it, h, b]
        pairs = pairs.unflatten(3, (-1, self.vector_words // 2)).permute(0, 2, 3, 1, 6, 4, 5, 7)
        result = torch.zeros(self.shape, dtype=torch.uint8)
        packed = result[: self.panels * self.chunks].view(self.panels, self.chunks, self.chunk_bytes)
        packed[..., : self.value_bytes] = pairs.reshape(self.panels, self.chunks, -1)
        scales = torch.nn.functional.pad(scales, (0, 0, 0, padding))
        if self.units:
            units = units_of(scales).view(torch.uint8)
            result.view(-1)[self.units_start : self.units_start + len(units)] = units
        scales = scales.repeat_interleave(self.group // self.segment, dim=1)
        scales = scales.reshape(self.panels, 2, 8, self.chunks, self.segments).permute(0, 3, 4, 2, 1)
        packed[..., self.value_bytes :] = scales.contiguous().view(torch.uint8).reshape(self.panels, self.chunks, -1)
        return result


def units_of(scales: torch.Tensor) -> torch.Tensor:
    """The unit of each row of ``scales`` (N, groups): float32 (N,), NaN where a scale is no finite number."""
    largest = scales.double().abs().amax(1)
    # A little more, so that none is rounded up to 4096: with -8, a negative one would leave 16 bits.
    _, exponents = torch.frexp(largest * (1 + 2.0 ** -(UNIT_BITS + 1)))
    units = torch.ldexp(torch.ones(len(scales)), (exponents - 1 - UNIT_BITS).clamp(*EXPONENTS))
    # In units every scale is a number: only the unit can show that one is not.
    return torch.where(largest.isfinite(), units, torch.nan)
