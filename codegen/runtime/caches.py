"""The states of a running model: allocated as the manifest says, grown when more tokens come than they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.codegen.runtime.device import Device
from planish.codegen.runtime.sizes import TensorSpec, parse_type

CAPACITY = "C"
FIRST_CAPACITY = 64


class Caches:
    """One tensor of the device for each state, laid out as compiled code wants it, all with the same capacity.

    A capacity that no longer suffices is doubled: the new memory is zero, and what was there is copied.
    """

    def __init__(self, device: Device, declared: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self._device = device
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
            shape, old = type.shape({**self._sizes, CAPACITY: capacity}), self.tensors.get(name)
            self.tensors[name] = (
                self._device.zeros(shape, type.stored) if old is None else self._device.grown(old, shape)
            )
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        """Bytes of the states as they are allocated now."""
        return sum(math.prod(t.shape) * np.dtype(self._types[n].stored).itemsize for n, t in self.tensors.items())
