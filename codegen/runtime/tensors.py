"""Tensors between torch and compiled code: the same memory on both sides."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm_ffi

from planish.ir import InputError

ALIGNMENT = 64
"""Bytes; compiled code loads whole vectors from the beginning of a tensor."""
_STORED = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "U16": np.uint16, "BOOL": np.bool_,
}  # fmt: skip


def to_compiled(tensor: torch.Tensor) -> Any:
    """A CPU tensor as compiled code takes it: contiguous, aligned, bfloat16 as its bits. Copies only if it must."""
    tensor = tensor.detach().contiguous()
    if tensor.data_ptr() % ALIGNMENT:
        tensor = aligned_copy(tensor)
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor


def from_compiled(result: Any, dtype: torch.dtype) -> torch.Tensor:
    """A result of compiled code as a torch tensor of its logical dtype, in the same memory."""
    tensor = result if isinstance(result, torch.Tensor) else torch.utils.dlpack.from_dlpack(result)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros whose memory the system provides when it is first touched."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)


def aligned_copy(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at an aligned address."""
    copy = aligned_zeros(tuple(tensor.shape), tensor.dtype)
    copy.copy_(tensor)
    return copy


def map_weights(path: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file as compiled code takes it, in the mapped file itself.

    Raises:
        InputError: when the file is not what its header says.
    """
    # Private and writable: DLPack has no way to say "read only", and nothing writes.
    memory = np.memmap(path, np.uint8, mode="c")
    try:
        (length,) = struct.unpack("<Q", memory[:8].tobytes())
        header = json.loads(memory[8 : 8 + length].tobytes())
        return {
            key: tvm_ffi.from_dlpack(_view(memory[8 + length :], entry))
            for key, entry in header.items()
            if key != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise InputError(f"{path} is no valid weights file: {error}") from error


def _view(data: Any, entry: dict[str, Any]) -> Any:
    begin, end = entry["data_offsets"]
    return data[begin:end].view(_STORED[entry["dtype"]]).reshape(entry["shape"])
