"""Large tensors, encoded and decoded a few rows at a time.

Encoders compute in float64 with several temporaries of a tensor's size; of a table of a hundred thousand rows they would take
ten times what the table takes. Rows do not see each other, so slices give the same storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from planish.ir.types import TensorType

SLICE_ELEMENTS = 1 << 22
"""At a time."""

Storage = dict[str, torch.Tensor]


def encoded_by_rows(tensor: torch.Tensor, encode: Callable[[torch.Tensor], Storage]) -> Storage:
    """What `encode` makes of a tensor whose storage has the tensor's leading axes in each field."""
    *outer, last = tensor.shape
    rows, height = tensor.reshape(-1, last), _height(last)
    if len(rows) <= height:
        return encode(tensor)
    parts = [encode(part) for part in rows.split(height)]
    return {field: torch.cat([part[field] for part in parts]).reshape(*outer, -1) for field in parts[0]}


def decoded_by_rows(
    storage: Mapping[str, torch.Tensor], type: TensorType, decode: Callable[[Storage, TensorType], torch.Tensor]
) -> torch.Tensor:
    """What `decode` makes of such a storage and a type."""
    *outer, last = type.concrete({})
    fields = {name: field.reshape(-1, field.shape[-1]) for name, field in storage.items()}
    count, height = len(next(iter(fields.values()))), _height(last)
    if count <= height:
        return decode(dict(storage), type)
    decoded = torch.empty(count, last, dtype=type.dtype)
    for start in range(0, count, height):
        part = {name: field[start : start + height] for name, field in fields.items()}
        rows = min(height, count - start)
        decoded[start : start + height] = decode(part, TensorType(type.dtype, (rows, last)))
    return decoded.reshape(*outer, last)


def _height(last: int) -> int:
    return max(1, SLICE_ELEMENTS // max(1, last))
