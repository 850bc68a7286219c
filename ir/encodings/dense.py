"""A tensor stored element by element, possibly in a narrower dtype than its logical one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.ir.encodings.base import Encoding
from planish.ir.types import TensorType, dtype_name


@dataclass(frozen=True)
class Dense(Encoding):
    """One element of `dtype` for each element of the logical tensor."""

    name: ClassVar[str] = "dense"
    dtype: torch.dtype

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        return {"values": type.with_dtype(self.dtype)}

    def encode(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": tensor.to(self.dtype).contiguous()}

    def decode(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        return storage["values"].to(type.dtype)

    def __str__(self) -> str:
        return dtype_name(self.dtype)
