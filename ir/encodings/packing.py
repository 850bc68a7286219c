"""How small unsigned codes lie in bytes: along the last axis, in units of whole bytes, the last unit filled up with zeros."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import gcd

import torch


@dataclass(frozen=True)
class Packing(ABC):
    """A rule; `unit_codes` codes take `unit_bytes` bytes."""

    @property
    @abstractmethod
    def unit_codes(self) -> int:
        """Codes that take whole bytes together."""

    @property
    @abstractmethod
    def unit_bytes(self) -> int:
        """Bytes of a unit."""

    @property
    def bits_per_code(self) -> float:
        """Bits that a code takes in whole units."""
        return 8 * self.unit_bytes / self.unit_codes

    def width(self, codes: int) -> int:
        """Bytes of a row of so many codes."""
        return -(-codes // self.unit_codes) * self.unit_bytes

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Unsigned codes (uint8, one an element) along the last axis, in bytes."""
        padding = -codes.shape[-1] % self.unit_codes
        units = torch.nn.functional.pad(codes, (0, padding)).unflatten(-1, (-1, self.unit_codes))
        return self._pack(units).flatten(-2).contiguous()

    def unpack(self, values: torch.Tensor, codes: int) -> torch.Tensor:
        """The first `codes` codes (uint8) of packed rows."""
        return self._unpack(values.unflatten(-1, (-1, self.unit_bytes))).flatten(-2)[..., :codes].contiguous()

    @abstractmethod
    def _pack(self, units: torch.Tensor) -> torch.Tensor:
        """(..., unit_codes) to (..., unit_bytes)."""

    @abstractmethod
    def _unpack(self, units: torch.Tensor) -> torch.Tensor:
        """(..., unit_bytes) to (..., unit_codes)."""


@dataclass(frozen=True)
class BitPacking(Packing):
    """Codes of 1 to 8 bits one after the other, the first in the lowest bits of the first byte."""

    bits: int

    @property
    def unit_codes(self) -> int:
        return 8 // gcd(self.bits, 8)

    @property
    def unit_bytes(self) -> int:
        return self.bits // gcd(self.bits, 8)

    def _pack(self, units: torch.Tensor) -> torch.Tensor:
        packed = torch.zeros(*units.shape[:-1], self.unit_bytes, dtype=torch.uint8)
        for number in range(self.unit_codes):
            byte, shift = divmod(number * self.bits, 8)
            code = units[..., number]
            packed[..., byte] |= code << shift
            if shift + self.bits > 8:
                packed[..., byte + 1] |= code >> (8 - shift)
        return packed

    def _unpack(self, units: torch.Tensor) -> torch.Tensor:
        found = []
        for number in range(self.unit_codes):
            byte, shift = divmod(number * self.bits, 8)
            code = units[..., byte] >> shift
            if shift + self.bits > 8:
                code = code | units[..., byte + 1] << (8 - shift)
            found.append(code & ((1 << self.bits) - 1))
        return torch.stack(found, dim=-1)


@dataclass(frozen=True)
class TritPacking(Packing):
    """Five codes of 0, 1 or 2 in a byte: the digits of its value in base 3, the first one lowest."""

    unit_codes = 5
    unit_bytes = 1

    def _pack(self, units: torch.Tensor) -> torch.Tensor:
        powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)
        packed: torch.Tensor = (units * powers).sum(-1, dtype=torch.uint8).unsqueeze(-1)
        return packed

    def _unpack(self, units: torch.Tensor) -> torch.Tensor:
        powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)
        return units // powers % 3
