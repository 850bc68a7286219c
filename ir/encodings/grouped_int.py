"""Integers of 1 to 8 bits around zero, or shifted by a zero point for each group.

Without zero points a group is held in q = -2^(bits-1) ... 2^(bits-1) - 1. With them, in q - z for the group's own z
between 0 and 2^bits - 1: its range need not contain zero in the middle, and z stands for zero exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.ir.encodings.grouped import Grid, Grouped
from planish.ir.encodings.packing import BitPacking
from planish.ir.errors import IRError
from planish.ir.types import TensorType, dtype_name

LARGEST_BITS = 8


@dataclass(frozen=True)
class GroupedInt(Grouped):
    """Integers of `bits` bits, one scale of `scale_dtype` per `group` elements of the last axis.

    With `zero_points` there is a third field, "zeros": a code for each group, packed as the values are.
    """

    name: ClassVar[str] = "grouped_int"
    bits: int
    group: int
    scale_dtype: torch.dtype = torch.float16
    zero_points: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= LARGEST_BITS:
            raise IRError(f"grouped integers of {self.bits} bits are not supported; choose 1 to {LARGEST_BITS}")
        super().__post_init__()

    @property
    def zero(self) -> int:
        """The code that stands for 0 where groups have no zero points."""
        return 1 << (self.bits - 1)

    @property
    def grid(self) -> Grid:
        return Grid(0 if self.zero_points else -self.zero, 1, 1 << self.bits)

    @property
    def packing(self) -> BitPacking:
        return BitPacking(self.bits)

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        layout = super().layout(type)
        if self.zero_points:
            *outer, groups = layout["scales"].concrete({})
            layout["zeros"] = TensorType(torch.uint8, (*outer, self.packing.width(groups)))
        return layout

    def scale(self, groups: torch.Tensor) -> torch.Tensor:
        """Without zero points the element of largest magnitude m sets it, s = -m / 2^(bits-1), so that it is held by the most
        negative code and the whole range is used; with them the range from the smallest to the largest element, and
        zero, is cut into 2^bits - 1 steps."""
        if self.zero_points:
            low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
            return (high - low) / (self.grid.count - 1)
        return groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -self.zero

    def fitted(
        self, groups: torch.Tensor, shrink: torch.Tensor | float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        scales = self.kept(self.scale(groups) * shrink)
        if not self.zero_points:
            return scales, None
        steps, low = scales.to(torch.float64), groups.amin(-1, keepdim=True).clamp(max=0) * shrink
        # A level is the distance from the zero point.
        return scales, self.grid.nearest(torch.where(steps == 0, 0.0, -low / steps))

    def __str__(self) -> str:
        return f"int{self.bits}{'z' if self.zero_points else ''}g{self.group}s{dtype_name(self.scale_dtype)}"
