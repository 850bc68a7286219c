"""Draws shared by the samplers of raising rules."""

from __future__ import annotations

import torch

from planish.ir.op import Chooser
from planish.ir.types import TensorType

F32 = torch.float32


def choose_shape(choose: Chooser, last: int, leading: int = 2) -> TensorType:
    """A float32 tensor with up to `leading` (at least one) axes before one of size `last`."""
    count = choose.integer(1, leading)
    return TensorType(F32, (*(choose.integer(2, 5) for _ in range(count)), last))


def small_integers(choose: Chooser, *shape: int) -> torch.Tensor:
    """A parameter of small integers, so that products and sums are exact."""
    generator = torch.Generator().manual_seed(choose.integer(0, 999))
    return torch.randint(-3, 4, shape, generator=generator).to(F32)
