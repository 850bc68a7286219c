"""Training in view of quantisation: weights go on learning as their encodings will hold them, or rotations of them do."""

from __future__ import annotations

from planish.passes.training.loop import train_module
from planish.passes.training.losses import Loss
from planish.passes.training.network import Network
from planish.passes.training.options import RotationOptions, TrainingOptions
from planish.passes.training.rotations import find_rotations
from planish.passes.training.runnable import Batch

__all__ = ["Batch", "Loss", "Network", "RotationOptions", "TrainingOptions", "find_rotations", "train_module"]
