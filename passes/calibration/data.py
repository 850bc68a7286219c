"""What a pass may calibrate on, and how much of it may stay in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from planish.ir.errors import InputError
from planish.ir.params import storage_digest

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """Inputs on which a network is observed.

    Attributes:
        batches: calls of `forward`, inputs by name. All rows of a batch count alike, so there should be no padding.
        memory: bytes of intermediate results that stay in memory; what is more waits on disk.
        workspace: a folder in which finished weights are kept, so that a run that was killed goes on where it was; also
            where intermediate results wait. None for a temporary folder, and no going on.
    """

    batches: tuple[Batch, ...]
    memory: int = 1 << 30
    workspace: Path | None = None

    def __post_init__(self) -> None:
        if not self.batches:
            raise InputError("the calibration data hold no batch; give at least one")
        if self.memory < 0:
            raise InputError(f"calibration cannot keep {self.memory} bytes in memory; give 0 or more")

    @cached_property
    def fingerprint(self) -> str:
        """Equal for data with the same bits."""
        return storage_digest({f"{n}.{name}": t for n, batch in enumerate(self.batches) for name, t in batch.items()})
