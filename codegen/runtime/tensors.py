"""Tensors between callers and compiled code: the same memory on both sides.

Inside, everything is numpy. A caller may bring torch tensors and then gets torch tensors back, but torch itself is not
imported here: who passes a tensor of it has it loaded.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.ffi import tvm_ffi
from planish.codegen.runtime.sizes import TensorSpec

ALIGNMENT = 64
"""Bytes; compiled code loads whole vectors from the beginning of a tensor."""
_STORED = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "U16": np.uint16, "BOOL": np.bool_,
}  # fmt: skip


def is_torch(tensor: Any) -> bool:
    """Whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def as_array(tensor: Any, type: TensorSpec, what: str) -> Any:
    """A caller's tensor as a numpy array of the type's stored dtype, in the same memory where possible.

    Raises:
        InputError: naming `what` for anything but a CPU tensor of the declared dtype.
    """
    given = dtype_of(tensor, what)
    if given != type.dtype:
        raise input_error(f"{what} is {given}, but {type.dtype} was declared")
    if is_torch(tensor):
        torch = sys.modules["torch"]
        tensor = tensor.detach().cpu().contiguous()
        tensor = (tensor.view(torch.uint16) if type.dtype == "bf16" else tensor).numpy()
    array = np.asarray(tensor, order="C")
    # DLPack has no way to say that memory is read only.
    aligned = not _address(array) % ALIGNMENT and array.flags.writeable
    return array if aligned else aligned_copy(array)


def dtype_of(tensor: Any, what: str) -> str:
    """The short name of a tensor's dtype; raises InputError naming `what` for no tensor."""
    if not is_torch(tensor) and not isinstance(tensor, np.ndarray):
        raise input_error(f"{what} must be a torch tensor or a numpy array, not {type(tensor).__name__}")
    return _short_name(tensor.dtype)


@cache
def _short_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if name == "bfloat16":
        return "bf16"
    for prefix, short in (("uint", "u"), ("int", "i"), ("float", "f")):
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name


def from_compiled(array: Any, type: TensorSpec, torch_wanted: bool) -> Any:
    """A result of compiled code in the same memory: a torch tensor, or a numpy array in which bfloat16 is float32."""
    if torch_wanted:
        torch = sys.modules["torch"]
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if type.dtype == "bf16" else tensor
    return (array.astype(np.uint32) << 16).view(np.float32) if type.dtype == "bf16" else array


def _address(array: Any) -> int:
    """Where an array's memory begins; its attribute `ctypes` says so too, and imports ctypes for it at every call."""
    return int(array.__array_interface__["data"][0])


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """Zeros whose memory the system provides when it is first touched."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -_address(memory) % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: Any) -> Any:
    """The same values at an aligned address."""
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def map_weights(path: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file as compiled code takes it, in the mapped file itself.

    Raises:
        InputError: when the file is not what its header says.
    """
    try:
        # Private and writable: DLPack has no way to say "read only", and nothing writes.
        memory = np.memmap(path, np.uint8, mode="c")
        (length,) = struct.unpack("<Q", memory[:8].tobytes())
        header = json.loads(memory[8 : 8 + length].tobytes())
        return {
            key: tvm_ffi.from_dlpack(_view(memory[8 + length :], entry))
            for key, entry in header.items()
            if key != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise input_error(f"{path} is no valid weights file: {error}") from error


def _view(data: Any, entry: dict[str, Any]) -> Any:
    begin, end = entry["data_offsets"]
    return data[begin:end].view(_STORED[entry["dtype"]]).reshape(entry["shape"])
