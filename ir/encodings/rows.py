"""Encodings under which every row of the last axis stands by itself: what a tensor written row by row can be held in."""

from __future__ import annotations

import torch

from planish.ir.encodings.base import Encoding
from planish.ir.errors import IRError
from planish.ir.types import TensorType

_ROWS = (2, 3)


def require_rows(encoding: Encoding, type: TensorType) -> None:
    """Raise IRError unless each row of a tensor of that type, whose other axes may be symbolic, is held by itself.

    So it is when every storage tensor has the leading axes of the logical one.
    """
    last = type.shape[-1] if type.shape else None
    if type.rank < 3 or not isinstance(last, int) or not type.dtype.is_floating_point:
        raise IRError(f"{encoding} holds rows of floats [batch, tokens, ..., size] of a fixed size, not {type}")
    for field, storage in encoding.layout(TensorType(type.dtype, (*_ROWS, last))).items():
        if storage.shape[: len(_ROWS)] != _ROWS:
            raise IRError(f"{encoding} has {field!r} for more than one row, so rows cannot be written one by one")


def rounded(encoding: Encoding, tensor: torch.Tensor) -> torch.Tensor:
    """What is left of a tensor once it is held in an encoding, in the tensor's dtype."""
    storage = encoding.encode(tensor)
    return encoding.decode(storage, TensorType(tensor.dtype, tuple(tensor.shape)))
