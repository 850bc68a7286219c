"""Kernels and artifacts on an emulated Arm machine, for tests: one machine a process, started when first asked for."""

from __future__ import annotations

import atexit
from functools import cache

import pytest

from planish.codegen.remote import RemoteDevice
from planish.targets.arm.emulator import Emulator, missing

needs_arm = [pytest.mark.full, pytest.mark.first, pytest.mark.skipif(bool(missing()), reason=missing())]
"""Marks of tests that run Arm code."""

BUILDS = {"generic": "neoverse-n1", "generic+i8mm": "max"}
"""Processors that artifacts are built for, each with the emulated one that has no more than it needs."""


@cache
def machine(processor: str) -> RemoteDevice:
    """A connection to an emulated machine with that processor, kept to the end of the process."""
    emulator = Emulator(processor).__enter__()
    atexit.register(emulator.__exit__, None, None, None)
    return emulator.connect()
