"""Integers with one scale for each group of consecutive elements of the last axis.

An element is held as a *code*, an unsigned number of a few bits; a code stands for an integer *level*, and the element is
level times scale. What encodings of this kind differ in is the grid of levels and how a scale is found.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from planish.ir.encodings.base import Encoding
from planish.ir.encodings.packing import Packing
from planish.ir.encodings.slices import decoded_by_rows, encoded_by_rows
from planish.ir.errors import IRError
from planish.ir.types import TensorType

FLOAT_SCALES = (torch.float16, torch.bfloat16, torch.float32)
SCALE_DTYPES = (*FLOAT_SCALES, torch.int8)
BLOCK = 16
"""Groups whose int8 scales share a bfloat16 number. It needs few bits: scales are rounded to its multiples, and the range of
float16 would be too narrow for a 127th of them."""
LARGEST_INT8 = 127


@dataclass(frozen=True)
class Grid:
    """The levels ``first + step * c`` of the codes c = 0 ... count - 1."""

    first: int
    step: int
    count: int

    @property
    def largest(self) -> int:
        """The largest magnitude of a level."""
        return max(-self.first, self.first + self.step * (self.count - 1))

    def nearest(self, levels: torch.Tensor) -> torch.Tensor:
        """The codes (uint8) of the levels nearest to `levels`, real numbers; halfway between two, the even choice of
        rounding ``levels / step`` (``levels / step - 1/2`` where zero is no level)."""
        offset = -self.first / self.step
        half = offset % 1
        codes = (levels / self.step - half).round() + (offset + half)
        return codes.clamp(0, self.count - 1).to(torch.uint8)

    def levels(self, codes: torch.Tensor) -> torch.Tensor:
        """The levels (int16) of codes."""
        return codes.to(torch.int16) * self.step + self.first


@dataclass(frozen=True)
class Rounded:
    """Groups on a grid.

    Attributes:
        codes: uint8 (..., groups, group).
        scales: as they are stored, (..., groups, 1); float32 where they are stored as multiples.
        zeros: uint8 (..., groups, 1) where groups have zero points.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None


class Grouped(Encoding):
    """Base of the encodings by levels: fields "values", packed codes, "scales", one for a group, and perhaps "zeros", the
    levels that stand for 0, packed as the values are. Scales of int8 are multiples of "block_scales", one for `BLOCK` groups.

    Attributes:
        group: elements of the last axis that share a scale; divides it.
        scale_dtype: float16, bfloat16, float32, or int8.
    """

    group: int
    scale_dtype: torch.dtype

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """What codes stand for."""

    @property
    @abstractmethod
    def packing(self) -> Packing:
        """How codes lie in bytes."""

    @abstractmethod
    def scale(self, groups: torch.Tensor) -> torch.Tensor:
        """The scales by plain rounding for groups along the last axis, float64, which is kept with size 1."""

    def __post_init__(self) -> None:
        if self.group < 1:
            raise IRError(f"a group needs at least one element, not {self.group}")
        if self.scale_dtype not in SCALE_DTYPES:
            raise IRError(f"scales of {self.scale_dtype} are not supported; choose float16, bfloat16, float32 or int8")

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        *outer, last = type.concrete({})
        if last % self.group:
            raise IRError(
                f"a group of {self.group} does not divide the last axis of {type} ({last} elements); "
                f"choose a group size that divides {last}"
            )
        groups = last // self.group
        layout = {
            "values": TensorType(torch.uint8, (*outer, self.packing.width(last))),
            "scales": TensorType(self.scale_dtype, (*outer, groups)),
        }
        if self.scale_dtype == torch.int8:
            layout["block_scales"] = TensorType(torch.bfloat16, (*outer, -(-groups // BLOCK)))
        return layout

    def encode(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Round to nearest, scales first: they are rounded to `scale_dtype` and stay finite, what is too large saturates."""
        return encoded_by_rows(tensor, lambda rows: self.packed(self.rounded(self.groups(rows))))

    def groups(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements in float64, (..., groups, group)."""
        self.layout(TensorType(tensor.dtype, tuple(tensor.shape)))
        groups: torch.Tensor = tensor.to(torch.float64).unflatten(-1, (-1, self.group))
        return groups

    def rounded(self, groups: torch.Tensor, shrink: torch.Tensor | float = 1.0) -> Rounded:
        """Groups with the scales of plain rounding times `shrink`, a number or one for each group, (..., groups, 1)."""
        scales, zeros = self.fitted(groups, shrink)
        return Rounded(self.quantize(groups, scales.to(torch.float64), zeros), scales, zeros)

    def fitted(
        self, groups: torch.Tensor, shrink: torch.Tensor | float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `rounded` rounds with: scales as they are stored and zero points (uint8), both (..., groups, 1)."""
        return self.kept(self.scale(groups) * shrink), None

    def restored(self, rounded: Rounded) -> torch.Tensor:
        """The elements that rounded groups hold, in float64."""
        levels = self.grid.levels(rounded.codes)
        if rounded.zeros is not None:
            levels = levels - rounded.zeros.to(torch.int16)
        return levels.to(torch.float64) * rounded.scales.to(torch.float64)

    def packed(self, rounded: Rounded) -> dict[str, torch.Tensor]:
        """What is stored for rounded groups."""
        storage = {
            "values": self.packing.pack(rounded.codes.flatten(-2)),
            "scales": rounded.scales.squeeze(-1).contiguous(),
        }
        if self.scale_dtype == torch.int8:
            storage["scales"], storage["block_scales"] = _multiples(storage["scales"])
        if rounded.zeros is not None:
            storage["zeros"] = self.packing.pack(rounded.zeros.squeeze(-1))
        return storage

    def kept(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales (..., groups, 1) as `scale_dtype` holds them; what is too large for it saturates."""
        if self.scale_dtype == torch.int8:
            return _scales_of(*_multiples(scales.squeeze(-1))).unsqueeze(-1)
        largest = torch.finfo(self.scale_dtype).max
        return scales.clamp(-largest, largest).to(self.scale_dtype)

    def quantize(self, groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        """Codes of `groups` for given scales and zero points (broadcast against them); a zero scale gives the code nearest
        to level 0."""
        levels = torch.where(scales == 0, torch.zeros_like(groups), groups / scales)
        return self.grid.nearest(levels if zeros is None else levels + zeros)

    def scales(self, storage: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scales that a storage holds, (..., groups): in `scale_dtype`, or float32 for int8, exactly."""
        if self.scale_dtype == torch.int8:
            return _scales_of(storage["scales"], storage["block_scales"])
        return storage["scales"]

    def levels(self, values: torch.Tensor, last: int) -> torch.Tensor:
        """The levels (int16) of packed codes, `last` to a row."""
        return self.grid.levels(self.packing.unpack(values, last))

    def decode(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        return decoded_by_rows(storage, type, self._decoded)

    def _decoded(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        compute = torch.float64 if type.dtype == torch.float64 else torch.float32
        last = int(type.shape[-1])
        levels = self.levels(storage["values"], last).unflatten(-1, (-1, self.group))
        if "zeros" in storage:
            zeros = self.packing.unpack(storage["zeros"], last // self.group)
            levels = levels - zeros.to(torch.int16).unsqueeze(-1)
        decoded: torch.Tensor = (levels.to(compute) * self.scales(storage).to(compute).unsqueeze(-1)).flatten(-2)
        return decoded.to(type.dtype)


def _multiples(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales along the last axis as int8 multiples of one bfloat16 number for each block.

    The largest of a block becomes 127 times that number, which is known to 8 bits: so what comes out, put in, comes out.
    """
    blocks = torch.nn.functional.pad(scales, (0, -scales.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    largest = torch.finfo(torch.bfloat16).max
    unit = (blocks.abs().amax(-1) / LARGEST_INT8).clamp(max=largest).to(torch.bfloat16)
    wide = unit.to(scales.dtype).unsqueeze(-1)
    codes = torch.where(wide == 0, 0, blocks / torch.where(wide == 0, 1, wide)).round()
    codes = codes.clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8).flatten(-2)[..., : scales.shape[-1]]
    return codes.contiguous(), unit


def _scales_of(codes: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """The float32 products, exact."""
    spread = units.to(torch.float32).repeat_interleave(BLOCK, -1)[..., : codes.shape[-1]]
    return codes.to(torch.float32) * spread
