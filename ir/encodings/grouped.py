"""Integers of 1 to 8 bits with one scale per group of consecutive elements of the last axis.

Element x of a group with scale s is held as q = x / s rounded to the nearest integer, ties to even, in
[-2^(bits-1), 2^(bits-1) - 1], and stored as the unsigned q + 2^(bits-1). Codes are packed along the last axis, the
element with the lowest index in the lowest bits of a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.ir.encodings.base import Encoding
from planish.ir.errors import IRError
from planish.ir.types import TensorType, dtype_name

PACKABLE_BITS = (1, 2, 4, 8)
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class GroupedInt(Encoding):
    """Symmetric integers of `bits` bits, one scale of `scale_dtype` per `group` elements of the last axis."""

    name: ClassVar[str] = "grouped_int"
    bits: int
    group: int
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if self.bits not in PACKABLE_BITS:
            raise IRError(f"grouped integers of {self.bits} bits are not supported; choose one of {PACKABLE_BITS}")
        if self.group < 1 or (self.group * self.bits) % 8:
            raise IRError(f"a group of {self.group} elements of {self.bits} bits does not fill whole bytes")
        if self.scale_dtype not in SCALE_DTYPES:
            raise IRError(f"scales of {self.scale_dtype} are not supported; choose float16, bfloat16 or float32")

    @property
    def zero(self) -> int:
        """The code that stands for 0."""
        return 1 << (self.bits - 1)

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        *outer, last = type.concrete({})
        if last % self.group:
            raise IRError(
                f"a group of {self.group} does not divide the last axis of {type} ({last} elements); "
                f"choose a group size that divides {last}"
            )
        return {
            "values": TensorType(torch.uint8, (*outer, last * self.bits // 8)),
            "scales": TensorType(self.scale_dtype, (*outer, last // self.group)),
        }

    def encode(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Round to nearest. The element of largest magnitude m in a group sets the scale: s = -m / 2^(bits-1), so that it
        is held by the most negative code and the whole range is used; s is rounded to `scale_dtype` first, and stays
        finite: what is too large for it saturates."""
        self.layout(TensorType(tensor.dtype, tuple(tensor.shape)))
        groups = tensor.to(torch.float64).unflatten(-1, (-1, self.group))
        peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        largest = torch.finfo(self.scale_dtype).max
        scales = (peak / -self.zero).clamp(-largest, largest).to(self.scale_dtype)
        codes = self.quantize(groups, scales.to(torch.float64))
        return {"values": self.pack(codes.flatten(-2)), "scales": scales.squeeze(-1).contiguous()}

    def quantize(self, groups: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Unsigned codes of `groups` for given scales (broadcast against it); a zero scale gives the code of 0."""
        quotient = torch.where(scales == 0, torch.zeros_like(groups), groups / scales)
        return (quotient.round().clamp(-self.zero, self.zero - 1) + self.zero).to(torch.uint8)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Pack unsigned codes (uint8, one per element) along the last axis."""
        per_byte = 8 // self.bits
        shifts = torch.arange(per_byte, dtype=torch.uint8) * self.bits
        lanes = codes.unflatten(-1, (-1, per_byte)) << shifts
        packed: torch.Tensor = lanes.sum(-1, dtype=torch.uint8)
        return packed.contiguous()

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Signed integers (int8) of packed codes; the last axis grows by 8 / bits."""
        shifts = torch.arange(8 // self.bits, dtype=torch.uint8) * self.bits
        codes = (values.unsqueeze(-1) >> shifts) & ((1 << self.bits) - 1)
        return (codes.flatten(-2).to(torch.int16) - self.zero).to(torch.int8)

    def decode(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        compute = torch.float64 if type.dtype == torch.float64 else torch.float32
        groups = self.unpack(storage["values"]).to(compute).unflatten(-1, (-1, self.group))
        decoded: torch.Tensor = (groups * storage["scales"].to(compute).unsqueeze(-1)).flatten(-2)
        return decoded.to(type.dtype)

    def __str__(self) -> str:
        return f"int{self.bits}g{self.group}s{dtype_name(self.scale_dtype)}"
