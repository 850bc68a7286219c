"""What the machine that runs an artifact has: processor features and cores, as the operating system tells."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from planish.codegen.runtime.errors import input_error

CPUINFO = Path("/proc/cpuinfo")


_ARM_NAMES = {"asimd": "neon", "asimdhp": "fullfp16", "asimddp": "dotprod"}
"""Linux's names of features of 64-bit Arm where LLVM has others."""


def cpu_features(path: Path = CPUINFO) -> frozenset[str] | None:
    """Features in LLVM's spelling; None where the system does not list them."""
    return read_features(path.read_text()) if path.is_file() else None


def read_features(cpuinfo: str) -> frozenset[str]:
    """The features that the text of Linux's `/proc/cpuinfo` lists, in LLVM's spelling."""
    found: set[str] = set()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found.update(llvm_feature(f) for f in value.split())
    return frozenset(found)


def llvm_feature(flag: str) -> str:
    """Linux's name of a processor's feature as LLVM spells it."""
    return flag.replace("_", "") if flag.startswith("avx") else _ARM_NAMES.get(flag, flag)


def check_features(needed: Iterable[str], present: frozenset[str] | None) -> None:
    """Raise InputError naming the features that this processor lacks."""
    missing = sorted(set(needed) - present) if present is not None else []
    if missing:
        raise input_error(
            f"this artifact was compiled for a processor with {', '.join(missing)}, which this machine's lacks: "
            f"compile the model again on this machine, or for a target that it can run"
        )


def usable_cores(path: Path = CPUINFO) -> int:
    """Physical cores that this process may use: two logical processors of one core share its vector units."""
    allowed = {str(n) for n in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else None
    if allowed is None or not path.is_file():
        return os.cpu_count() or 1
    cores = set()
    for block in path.read_text().strip().split("\n\n"):
        fields = _fields(block)
        if fields.get("processor") in allowed:
            cores.add((fields.get("physical id", ""), fields.get("core id", fields.get("processor", ""))))
    return max(1, len(cores))


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
