"""Running a network on calibration data, one part after the other, while its weights change."""

from __future__ import annotations

from planish.passes.calibration.data import Calibration
from planish.passes.calibration.lockstep import Lockstep
from planish.passes.calibration.workspace import Workspace

__all__ = ["Calibration", "Lockstep", "Workspace"]
