"""A safetensors file written part by part, so that no more than one weight is in memory at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from planish.ir import InputError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip

Described = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """Some tensors that are made together: dtypes and shapes by name, and what makes them."""

    tensors: Mapping[str, Described]
    make: Callable[[], Mapping[str, torch.Tensor]]


def write_safetensors(path: Path, parts: Sequence[Part]) -> None:
    """Write the tensors of all parts, in this order.

    Raises:
        InputError: when a part makes something else than it described.
        OSError: as the file system does.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in (item for part in parts for item in part.tensors.items()):
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            made = part.make()
            for name, described in part.tensors.items():
                tensor = made[name]
                if (tensor.dtype, tuple(tensor.shape)) != described:
                    raise InputError(
                        f"tensor {name!r} is {tensor.dtype}{list(tensor.shape)}, but {described} was announced"
                    )
                file.write(
                    tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().data
                )
