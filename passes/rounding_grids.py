"""What GPTQ asks of an encoding: scales for a group of columns, codes under given scales, and the storage of all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from planish.ir.encodings import Encoding, Grouped, MxFp4, NvFp4
from planish.ir.encodings.float_blocks import (
    BIAS_E8M0,
    FOURS,
    LARGEST_E2M1,
    LARGEST_E4M3,
    ROOMY_E4M3,
    SMALLEST_E4M3,
    e2m1_codes,
    e2m1_values,
    e4m3_bits,
    e4m3_values,
)
from planish.ir.encodings.grouped import Rounded
from planish.passes.scale_search import FRACTIONS, best_fractions

COARSE = FRACTIONS[::5]
"""What the search for scales tries: they are only where the fit to the codes begins."""


class RoundingGrid(ABC):
    """Rows of numbers in groups along the last axis; a number is a level times its group's scale."""

    @property
    @abstractmethod
    def group(self) -> int:
        """Columns that share a scale."""

    @abstractmethod
    def fitted(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales as they are stored and zero points, (rows, 1) each, for groups (rows, group) in float64."""

    @abstractmethod
    def kept(self, scales: torch.Tensor) -> torch.Tensor:
        """The scales nearest to `scales` that can be stored."""

    @abstractmethod
    def codes(self, numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        """The codes (uint8) of numbers under scales in float64 and zero points that broadcast against them."""

    @abstractmethod
    def levels(self, codes: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        """What codes stand for, in float64."""

    @abstractmethod
    def packed(self, rounded: Rounded) -> dict[str, torch.Tensor]:
        """The storage of rows, (rows, groups, group)."""

    def restored(self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        """The numbers that codes hold, in float64."""
        return self.levels(codes, zeros) * scales.to(torch.float64)


@dataclass(frozen=True)
class IntegerGrid(RoundingGrid):
    """Levels that are integers: scales by search."""

    encoding: Grouped

    @property
    def group(self) -> int:
        return self.encoding.group

    def fitted(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.encoding.fitted(groups, best_fractions(self.encoding, groups, COARSE))

    def kept(self, scales: torch.Tensor) -> torch.Tensor:
        return self.encoding.kept(scales)

    def codes(self, numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        return self.encoding.quantize(numbers, scales, zeros)

    def levels(self, codes: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        levels = self.encoding.grid.levels(codes).to(torch.float64)
        return levels if zeros is None else levels - zeros.to(torch.float64)

    def packed(self, rounded: Rounded) -> dict[str, torch.Tensor]:
        return self.encoding.packed(rounded)


class FourBitFloats(RoundingGrid):
    """Levels that are floats of four bits. A subclass says which scales there are."""

    def codes(self, numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        return e2m1_codes(numbers / scales)

    def levels(self, codes: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        return e2m1_values(codes)

    def fitted(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The largest of a group as 6 or as 4, whichever loses less."""
        largest = groups.abs().amax(-1, keepdim=True)
        six, four = (self.kept(largest / end) for end in (LARGEST_E2M1, 4.0))
        lost = [
            (self.restored(self.codes(groups, s, None), s, None) - groups).square().sum(-1, True) for s in (six, four)
        ]
        return torch.where(lost[1] < lost[0], four, six), None


@dataclass(frozen=True)
class NvFp4Grid(FourBitFloats):
    """Scales of E4M3 times `whole`, the scale of the tensor, float64."""

    whole: torch.Tensor

    @property
    def group(self) -> int:
        return NvFp4.block

    @classmethod
    def of(cls, weight: torch.Tensor) -> NvFp4Grid:
        """With room above the scales, as four over six has it: compensation makes columns grow."""
        return cls(NvFp4().tensor_scale(weight, ROOMY_E4M3))

    def kept(self, scales: torch.Tensor) -> torch.Tensor:
        bits = e4m3_bits((scales / self.whole).clamp(SMALLEST_E4M3, LARGEST_E4M3))
        return e4m3_values(bits) * self.whole

    def packed(self, rounded: Rounded) -> dict[str, torch.Tensor]:
        bits = e4m3_bits(rounded.scales.squeeze(-1) / self.whole)
        return {
            "values": FOURS.pack(rounded.codes.flatten(-2)),
            "scales": bits,
            "tensor_scale": self.whole.to(torch.float32),
        }


@dataclass(frozen=True)
class MxFp4Grid(FourBitFloats):
    """Scales that are powers of two."""

    @property
    def group(self) -> int:
        return MxFp4.block

    def kept(self, scales: torch.Tensor) -> torch.Tensor:
        positive = torch.where(scales > 0, scales, 1.0)
        exponent = positive.log2().round().clamp(-BIAS_E8M0, BIAS_E8M0)
        return torch.ldexp(torch.ones_like(positive), exponent.to(torch.int32))

    def packed(self, rounded: Rounded) -> dict[str, torch.Tensor]:
        exponent = torch.frexp(rounded.scales.squeeze(-1)).exponent - 1
        return {"values": FOURS.pack(rounded.codes.flatten(-2)), "scales": (exponent + BIAS_E8M0).to(torch.uint8)}


def grid_of(encoding: Encoding, weight: torch.Tensor) -> RoundingGrid | None:
    """The grid on which a weight [out, in] is rounded for an encoding, None where groups have no scales of their own."""
    if isinstance(encoding, Grouped):
        return IntegerGrid(encoding)
    if isinstance(encoding, NvFp4):
        return NvFp4Grid.of(weight)
    return MxFp4Grid() if isinstance(encoding, MxFp4) else None
