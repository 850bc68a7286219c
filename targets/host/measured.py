"""What this machine can do at best, measured on first use and kept for the next ones.

The figures belong to a processor with its features and cores; they lie in the user's cache folder, one small file a
machine, and are measured anew when that file is missing, damaged or of another version. Whatever else runs meanwhile can
only make them too small, so the first few processes that ask measure, and the largest figures are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from planish.codegen.kernel_passes import compile_kernels
from planish.codegen.kernels import peaks
from planish.codegen.tiles.int8 import products
from planish.targets.host.detect import HostCpu

READ_ELEMENTS = 1 << 26
"""int32 elements that are read: 256 MB, more than caches hold."""
STEPS, ROWS, REPEATS = 20_000, 100, 5
MEASUREMENTS = 3
"""How many processes measure."""


@dataclass(frozen=True)
class Speeds:
    """Of all cores together: bytes read per second, and operations per second (two a product)."""

    bytes_per_second: float
    float32: float
    int8: float

    def __post_init__(self) -> None:
        if not all(isinstance(v, float) and math.isfinite(v) and v > 0 for v in asdict(self).values()):
            raise ValueError(f"these are no speeds: {self}")

    def best(self, other: Speeds) -> Speeds:
        """The larger of each."""
        return Speeds(**{name: max(value, getattr(other, name)) for name, value in asdict(self).items()})


def speeds(cpu: HostCpu, measure: Callable[[HostCpu], Speeds] | None = None) -> Speeds:
    """The speeds of a processor, from the cache or measured now; `measure` does so in tests."""
    path = cache_file(cpu)
    known, count = _read(path)
    if known is not None and count >= MEASUREMENTS:
        return known
    found = (measure or measured)(cpu)
    found = found if known is None else found.best(known)
    # A folder that cannot be written to costs a second or two each time, and nothing else.
    with suppress(OSError):
        _write(path, json.dumps({"measurements": count + 1, **asdict(found)}))
    return found


def _read(path: Path) -> tuple[Speeds | None, int]:
    """What is kept, and from how many measurements; (None, 0) when that cannot be told."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        count = content.pop("measurements")
        return (Speeds(**content), count) if isinstance(count, int) else (None, 0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None, 0


def cache_file(cpu: HostCpu) -> Path:
    """Where the speeds of a processor are kept: in $XDG_CACHE_HOME/planish, or ~/.cache/planish."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    known = f"{cpu.model};{cpu.llvm_name};{sorted(cpu.features)};{cpu.cores};{version('planish')}"
    return root / "planish" / f"host-{hashlib.sha256(known.encode()).hexdigest()[:16]}.json"


def _write(path: Path, text: str) -> None:
    """Whole or not at all: another process may be reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".host-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise


def measured(cpu: HostCpu) -> Speeds:
    """Run the loops of `codegen.kernels.peaks` on every core; takes a second or two."""
    floats, dots, tasks = cpu.float_tile, cpu.int8_tile, 4 * cpu.cores

    def run(function: Any, name: str, *tensors: torch.Tensor) -> float:
        """Calls per second, the best of some."""
        kernel = compile_kernels(function, cpu.tvm_target())[name]
        kernel(*tensors)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            kernel(*tensors)
            times.append(time.perf_counter() - start)
        return 1 / min(times)

    source = torch.ones(READ_ELEMENTS, dtype=torch.int32)

    def read(way: str) -> float:
        tasks = peaks.read_tasks(floats.lanes, READ_ELEMENTS, way)
        sums = torch.zeros(tasks, floats.lanes, dtype=torch.int32)
        return run(peaks.reading(floats.lanes, READ_ELEMENTS, way), "reading", source, sums)

    reads = max(map(read, peaks.READS))
    count = peaks.chains(floats)
    x, y = torch.full((floats.lanes,), 0.5), torch.ones(tasks, count, floats.lanes)
    multiplied = run(peaks.multiplying(floats, tasks, STEPS), "multiplying", x, y)
    width, rounds = dots.lanes * dots.depth, STEPS // ROWS
    weights = torch.ones(ROWS, width, dtype=torch.uint8)
    activations, totals = (
        torch.ones(count, peaks.activation_bytes(dots), dtype=torch.int8),
        torch.zeros(tasks, count, dots.lanes, dtype=torch.int32),
    )
    summing = peaks.summing_products(dots, tasks, ROWS, rounds)
    bytes_summed = run(summing, "summing_products", weights, activations, totals)
    return Speeds(
        bytes_per_second=reads * 4 * READ_ELEMENTS,
        float32=multiplied * 2 * tasks * count * floats.lanes * STEPS,
        int8=bytes_summed * 2 * tasks * count * products(dots) * STEPS,
    )
