"""The artifact's weights: a safetensors file written tensor by tensor, each beginning at a multiple of 64 bytes.

safetensors allows no holes between tensors, so what fills the gaps are small tensors of their own, named `.padding.N`;
any safetensors reader can open the file. Kernels read the mapped file where it lies, which is why alignment matters.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from planish.codegen.family import Packed
from planish.ir import InputError
from planish.ir.types import dtype_name

ALIGNMENT = 64
PADDING = ".padding."
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.uint16: "U16", torch.bool: "BOOL",
}  # fmt: skip


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the file: bfloat16 is stored as the uint16 of its bits, as kernels read it."""
    return torch.uint16 if dtype == torch.bfloat16 else dtype


def write_weights(path: Path, packed: Sequence[Packed]) -> str:
    """Write the tensors in this order, one in memory at a time; returns the file's SHA-256.

    Raises:
        InputError: when a packing returns another shape or dtype than it stated.
        OSError: as the file system does.
    """
    header, gaps = _layout(packed)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in (struct.pack("<Q", len(text)), text):
            digest.update(block)
            file.write(block)
        for item, gap in zip(packed, gaps):
            tensor = item.make()
            if tuple(tensor.shape) != item.shape or tensor.dtype != stored_dtype(item.dtype):
                got, want = f"{tensor.dtype}{list(tensor.shape)}", f"{dtype_name(item.dtype)}{list(item.shape)}"
                raise InputError(f"the packed weight {item.key!r} is {got}, but {want} was announced")
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            for part in (content.data, bytes(gap)):
                digest.update(part)
                file.write(part)
    return digest.hexdigest()


def _layout(packed: Sequence[Packed]) -> tuple[dict[str, object], list[int]]:
    """The safetensors header, and the bytes of padding after each tensor."""
    header: dict[str, object] = {}
    gaps: list[int] = []
    at = 0
    for number, item in enumerate(packed):
        dtype = stored_dtype(item.dtype)
        size = math.prod(item.shape) * dtype.itemsize
        gap = -(at + size) % ALIGNMENT
        header[item.key] = {"dtype": _NAMES[dtype], "shape": list(item.shape), "data_offsets": [at, at + size]}
        at += size
        if gap:
            header[f"{PADDING}{number}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [at, at + gap]}
        at += gap
        gaps.append(gap)
    return header, gaps
