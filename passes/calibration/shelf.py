"""Intermediate results of many batches, in memory as far as they may be and else on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import torch
from safetensors.torch import load_file, save_file

K = TypeVar("K", bound=Hashable)


class Shelf(Generic[K]):
    """Holds one set of tensors by key for each slot. A context manager: what lies on disk goes when it is left.

    Args:
        memory: bytes that may stay in memory, over all slots.
        folder: where the others wait, in a folder of their own; None for the system's temporary files.
    """

    def __init__(self, memory: int, folder: Path | None = None) -> None:
        self.memory = memory
        self._parent = folder
        self._folder: Path | None = None
        self._held: dict[int, dict[K, torch.Tensor]] = {}
        self._spilled: dict[int, list[K]] = {}
        self._used = 0

    def __enter__(self) -> Shelf[K]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def spilled(self) -> int:
        """How many slots lie on disk."""
        return len(self._spilled)

    def put(self, slot: int, tensors: dict[K, torch.Tensor]) -> None:
        """Fill an empty slot; raises OSError when the disk cannot hold it."""
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._used + size <= self.memory:
            self._held[slot] = tensors
            self._used += size
            return
        # Two tensors may share memory, which the file format refuses; a copy of its own for each is what would be read back.
        save_file({str(n): t.contiguous().clone() for n, t in enumerate(tensors.values())}, self._path(slot))
        self._spilled[slot] = list(tensors)

    def take(self, slot: int) -> dict[K, torch.Tensor]:
        """Empty a slot."""
        if slot in self._held:
            tensors = self._held.pop(slot)
            self._used -= sum(t.numel() * t.element_size() for t in tensors.values())
            return tensors
        keys, path = self._spilled.pop(slot), self._path(slot)
        read = load_file(path)
        path.unlink()
        return {key: read[str(n)] for n, key in enumerate(keys)}

    def _path(self, slot: int) -> Path:
        if self._folder is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="planish-calibration-", dir=self._parent))
        return self._folder / f"{slot}.safetensors"
