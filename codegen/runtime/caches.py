"""The states of a running model: allocated as the manifest says, grown when more tokens come than they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from planish.codegen.runtime.program import parse_type
from planish.ir import TensorType

CAPACITY = "C"
FIRST_CAPACITY = 64


class Caches:
    """One tensor for each state, laid out as compiled code wants it, all with the same capacity.

    A capacity that no longer suffices is doubled: the new memory is zero, and what was there is copied.
    """

    def __init__(self, declared: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self._types: dict[str, TensorType] = {n: parse_type(s["memory"]) for n, s in declared.items()}
        self._sizes = dict(sizes)
        self.capacity = 0
        self.tensors: dict[str, torch.Tensor] = {}

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in every row. Capacities are powers of two, so whole panels of any machine."""
        if tokens <= self.capacity:
            return
        capacity = max(self.capacity, FIRST_CAPACITY)
        while capacity < tokens:
            capacity *= 2
        for name, type in self._types.items():
            grown = torch.zeros(type.concrete({**self._sizes, CAPACITY: capacity}), dtype=type.dtype)
            old = self.tensors.get(name)
            if old is not None:
                grown[tuple(slice(0, n) for n in old.shape)] = old
            self.tensors[name] = grown
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())
