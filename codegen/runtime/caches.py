"""The states of a running model: allocated as the manifest says, grown when more tokens come than they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.codegen.runtime.sizes import TensorSpec, parse_type
from planish.codegen.runtime.tensors import aligned_zeros

CAPACITY = "C"
FIRST_CAPACITY = 64


class Caches:
    """One array for each state, laid out as compiled code wants it, all with the same capacity.

    A capacity that no longer suffices is doubled: the new memory is zero, and what was there is copied.
    """

    def __init__(self, declared: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self._types: dict[str, TensorSpec] = {n: parse_type(s["memory"]) for n, s in declared.items()}
        self._sizes = dict(sizes)
        self.capacity = 0
        self.tensors: dict[str, Any] = {}

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in every row. Capacities are powers of two, so whole panels of any machine."""
        if tokens <= self.capacity:
            return
        capacity = max(self.capacity, FIRST_CAPACITY)
        while capacity < tokens:
            capacity *= 2
        for name, type in self._types.items():
            grown = aligned_zeros(type.shape({**self._sizes, CAPACITY: capacity}), type.stored)
            old = self.tensors.get(name)
            if old is not None:
                grown[tuple(slice(0, n) for n in old.shape)] = old
            self.tensors[name] = grown
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())
