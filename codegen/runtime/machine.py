"""What the machine that runs an artifact has: processor features and cores, as the operating system tells."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from planish.codegen.runtime.errors import input_error

CPUINFO = Path("/proc/cpuinfo")


def cpu_features(path: Path = CPUINFO) -> frozenset[str] | None:
    """Features in LLVM's spelling; None where the system does not list them."""
    if not path.is_file():
        return None
    found: set[str] = set()
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found.update(f.replace("_", "") if f.startswith("avx") else f for f in value.split())
    return frozenset(found)


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
