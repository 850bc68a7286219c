"""Quantisation-aware training: a network goes on learning while its weights are seen as their encodings will hold them."""

from __future__ import annotations

from planish.passes.training.loop import train_module
from planish.passes.training.losses import Loss
from planish.passes.training.network import Batch, Network
from planish.passes.training.options import TrainingOptions

__all__ = ["Batch", "Loss", "Network", "TrainingOptions", "train_module"]
