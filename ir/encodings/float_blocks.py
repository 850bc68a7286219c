"""Floats of four and eight bits that share scales: NVFP4, MXFP4 and FP8.

A four-bit float (E2M1) has a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with either sign, its
code being the place in this list plus 8 for the sign. Scales of blocks are floats of eight bits themselves, held as their
bits: E4M3 (largest 448) or E8M0, a power of two. Sources: OCP Microscaling Formats 1.0 (2023); NVIDIA's NVFP4 as Model
Optimizer encodes it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from planish.ir.encodings.base import Encoding
from planish.ir.encodings.packing import BitPacking
from planish.ir.encodings.slices import decoded_by_rows, encoded_by_rows
from planish.ir.errors import IRError
from planish.ir.types import TensorType

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of E2M1, by code."""
LARGEST_E2M1, LARGEST_E4M3, SMALLEST_E4M3 = 6.0, 448.0, 2.0**-9
ROOMY_E4M3 = 256.0
"""The largest scale where room is left above it: from 6 to 4 a scale grows by half, 384 is below 448."""
BIAS_E8M0 = 127
FOURS = BitPacking(4)


def e2m1_codes(values: torch.Tensor) -> torch.Tensor:
    """The codes (uint8) of the nearest four-bit floats, ties to the even code, beyond 6 that of 6; a negative value that
    rounds to zero keeps its sign."""
    size = values.abs()
    codes = torch.zeros(values.shape, dtype=torch.uint8)
    for code, (low, high) in enumerate(pairwise(MAGNITUDES)):
        middle = (low + high) / 2
        codes += (size > middle) | ((size == middle) & (code % 2 == 1))
    return codes | (torch.signbit(values).to(torch.uint8) << 3)


def e2m1_values(codes: torch.Tensor) -> torch.Tensor:
    """The numbers (float64) of codes."""
    size = torch.tensor(MAGNITUDES, dtype=torch.float64)[(codes & 7).long()]
    return torch.where(codes >= 8, -size, size)


def e4m3_bits(values: torch.Tensor) -> torch.Tensor:
    """The bits (uint8) of the nearest E4M3 numbers, ties to even, saturating."""
    return values.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).view(torch.uint8)


def e4m3_values(bits: torch.Tensor) -> torch.Tensor:
    """The numbers (float64) of E4M3 bits."""
    return bits.view(torch.float8_e4m3fn).to(torch.float64)


class _Blocks(Encoding):
    """Codes of four-bit floats along the last axis, a byte of scale to `block` of them."""

    block: ClassVar[int]

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        *outer, last = type.concrete({})
        if last % self.block:
            raise IRError(
                f"{self.name} has blocks of {self.block} elements, which do not divide the last axis of {type} ({last})"
            )
        return {
            "values": TensorType(torch.uint8, (*outer, last // 2)),
            "scales": TensorType(torch.uint8, (*outer, last // self.block)),
        }

    def blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements in float64, (..., blocks, block)."""
        self.layout(TensorType(tensor.dtype, tuple(tensor.shape)))
        blocks: torch.Tensor = tensor.to(torch.float64).unflatten(-1, (-1, self.block))
        return blocks

    def decode(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        whole = {name: field for name, field in storage.items() if name not in ("values", "scales")}
        rows = {name: storage[name] for name in ("values", "scales")}
        return decoded_by_rows(rows, type, lambda part, of: self._decoded({**part, **whole}, of))

    def _decoded(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        codes = FOURS.unpack(storage["values"], int(type.shape[-1])).unflatten(-1, (-1, self.block))
        decoded = e2m1_values(codes) * self.scales(storage).unsqueeze(-1)
        return decoded.flatten(-2).to(type.dtype)

    @abstractmethod
    def scales(self, storage: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scale of every block, float64 (..., blocks)."""


def _squared(blocks: torch.Tensor, bits: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The squared error of each block of NVFP4 under a scale."""
    scale = e4m3_values(bits).unsqueeze(-1) * whole
    return (e2m1_values(e2m1_codes(blocks / scale)) * scale - blocks).square().sum(-1)


@dataclass(frozen=True)
class NvFp4(_Blocks):
    """Blocks of 16 four-bit floats with an E4M3 scale, and one float32 scale, "tensor_scale", over all of them."""

    name: ClassVar[str] = "nvfp4"
    block: ClassVar[int] = 16

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        return {**super().layout(type), "tensor_scale": TensorType(torch.float32, ())}

    def encode(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The largest of the tensor takes the largest scale, the largest of a block the largest four-bit float."""
        whole = self.tensor_scale(tensor, LARGEST_E4M3)

        def of_rows(rows: torch.Tensor) -> dict[str, torch.Tensor]:
            blocks = self.blocks(rows)
            return self._storage(blocks, self._bits(blocks, whole, LARGEST_E2M1), whole)

        return {**encoded_by_rows(tensor, of_rows), "tensor_scale": whole.to(torch.float32)}

    def encode_four_over_six(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scales leave room upwards, so that the largest of a block may become 4 instead of 6, whichever leaves the smaller
        squared error: the step from 4 to 6 is the widest one."""
        whole = self.tensor_scale(tensor, ROOMY_E4M3)

        def of_rows(rows: torch.Tensor) -> dict[str, torch.Tensor]:
            blocks = self.blocks(rows)
            six, four = (self._bits(blocks, whole, largest) for largest in (LARGEST_E2M1, 4.0))
            better = _squared(blocks, four, whole) < _squared(blocks, six, whole)
            return self._storage(blocks, torch.where(better, four, six), whole)

        return {**encoded_by_rows(tensor, of_rows), "tensor_scale": whole.to(torch.float32)}

    def tensor_scale(self, tensor: torch.Tensor, largest_scale: float) -> torch.Tensor:
        """The scale of a tensor whose largest block is to have `largest_scale`, as float32 holds it, in float64."""
        self.layout(TensorType(tensor.dtype, tuple(tensor.shape)))
        size = torch.stack([tensor.amax(), -tensor.amin()]).amax() if tensor.numel() else torch.zeros(())
        whole = (size.to(torch.float64) / (LARGEST_E2M1 * largest_scale)).to(torch.float32)
        # All zeros (or what is as good as that in float32) are held under any scale.
        return torch.where(whole > 0, whole, 1.0).to(torch.float64)

    def _bits(self, blocks: torch.Tensor, whole: torch.Tensor, largest: float) -> torch.Tensor:
        wanted = blocks.abs().amax(-1) / (largest * whole)
        return e4m3_bits(torch.where(wanted == 0, 1.0, wanted).clamp(SMALLEST_E4M3, LARGEST_E4M3))

    def _storage(self, blocks: torch.Tensor, bits: torch.Tensor, whole: torch.Tensor) -> dict[str, torch.Tensor]:
        codes = e2m1_codes(blocks / (e4m3_values(bits).unsqueeze(-1) * whole))
        return {"values": FOURS.pack(codes.flatten(-2)), "scales": bits}

    def scales(self, storage: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return e4m3_values(storage["scales"]) * storage["tensor_scale"].to(torch.float64)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class MxFp4(_Blocks):
    """Blocks of 32 four-bit floats with a power of two as their scale (E8M0)."""

    name: ClassVar[str] = "mxfp4"
    block: ClassVar[int] = 32

    def encode(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The largest of a block comes between 4 and 8 and saturates at 6."""
        return encoded_by_rows(tensor, self._of_rows)

    def _of_rows(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        blocks = self.blocks(tensor)
        # frexp: size = m * 2^e with m from 1/2 on, so that its floored logarithm is e - 1.
        size = blocks.abs().amax(-1)
        exponent = torch.frexp(size).exponent - 1 - 2
        exponent = torch.where(size == 0, 0, exponent).clamp(-BIAS_E8M0, BIAS_E8M0)
        codes = e2m1_codes(torch.ldexp(blocks, -exponent.unsqueeze(-1)))
        return {"values": FOURS.pack(codes.flatten(-2)), "scales": (exponent + BIAS_E8M0).to(torch.uint8)}

    def scales(self, storage: Mapping[str, torch.Tensor]) -> torch.Tensor:
        exponent = storage["scales"].to(torch.int32) - BIAS_E8M0
        return torch.ldexp(torch.ones(exponent.shape, dtype=torch.float64), exponent)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Float8(Encoding):
    """E4M3 floats, held as their bits, with one float32 scale for each row of the last axis or for the whole tensor."""

    name: ClassVar[str] = "float8"
    scaled: Literal["row", "tensor"] = "row"

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        shape = type.concrete({})
        if not shape:
            raise IRError(f"{self.name} holds tensors with at least one axis, not {type}")
        scales = shape[:-1] if self.scaled == "row" else ()
        return {"values": TensorType(torch.uint8, shape), "scales": TensorType(torch.float32, scales)}

    def encode(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The largest of a row, or of the tensor, becomes 448."""
        self.layout(TensorType(tensor.dtype, tuple(tensor.shape)))
        values = tensor.to(torch.float64)
        size = values.abs().amax(-1) if self.scaled == "row" else values.abs().amax()
        scales = (size / LARGEST_E4M3).to(torch.float32)
        scales = torch.where(scales > 0, scales, 1.0)
        return {"values": e4m3_bits(values / self._over(scales)), "scales": scales}

    def decode(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        return (e4m3_values(storage["values"]) * self._over(storage["scales"])).to(type.dtype)

    def _over(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales as they meet elements."""
        wide = scales.to(torch.float64)
        return wide.unsqueeze(-1) if self.scaled == "row" else wide

    def __str__(self) -> str:
        return f"float8-{self.scaled}"
