"""Draws shared by the samplers of operations."""

from __future__ import annotations

import torch

from planish.ir.op import Chooser


def choose_float(choose: Chooser) -> torch.dtype:
    """A floating dtype, float32 first."""
    return choose.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def choose_leading(choose: Chooser) -> tuple[int, ...]:
    """Zero to three leading axes of asymmetric small sizes."""
    return tuple(choose.integer(1, 5) for _ in range(choose.integer(0, 3)))
