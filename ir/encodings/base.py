"""What every encoding states: its storage layout, how to encode and how to decode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from planish.ir.errors import IRError
from planish.ir.types import TensorType


@dataclass(frozen=True)
class Encoding:
    """Base of all encodings. A subclass is a frozen dataclass whose fields are the encoding's parameters."""

    name: ClassVar[str]

    def layout(self, type: TensorType) -> dict[str, TensorType]:
        """The storage tensors, by field, for a logical tensor of that type; raises IRError when it cannot be held."""
        raise IRError(f"encoding {self.name} declares no layout")

    def encode(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Storage whose decoding is as near to `tensor` as plain rounding brings it."""
        raise IRError(f"encoding {self.name} declares no encoder")

    def decode(self, storage: Mapping[str, torch.Tensor], type: TensorType) -> torch.Tensor:
        """The logical tensor of that type that the storage represents."""
        raise IRError(f"encoding {self.name} declares no decoder")

    def nbytes(self, type: TensorType) -> int:
        """Exact bytes of the storage of a tensor of that type."""
        return sum(math.prod(t.concrete({})) * t.dtype.itemsize for t in self.layout(type).values())

    def attributes(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}
