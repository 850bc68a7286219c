"""How everything in bench/ is timed: contestants take turns, medians are compared, and disturbed repeats are dropped.

A repeat counts as disturbed when other processes used more than a little of the machine meanwhile; how many were dropped
is printed beside every figure. Figures are JSON, one line each.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Cores' worth of other processes' work above which a repeat says more about them than about us.
DISTURBANCE = 0.12
GIB = 1 << 30


@dataclass(frozen=True)
class Timing:
    """Repeats of one contestant. `median` is over the undisturbed ones, or over all when none was quiet."""

    seconds: tuple[float, ...]
    dropped: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def _others_busy() -> float:
    """CPU seconds that processes other than this one have used since boot."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    # user, nice, system, irq, softirq, steal; idle and iowait are no work.
    busy = sum(int(fields[n]) for n in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return busy - usage.ru_utime - usage.ru_stime


def interleave(contestants: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, Timing]:
    """Time contestants in turns, A B A B, after one untimed round."""
    for run in contestants.values():
        run()
    quiet: dict[str, list[float]] = {name: [] for name in contestants}
    everything: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            before, start = _others_busy(), time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            everything[name].append(elapsed)
            if (_others_busy() - before) / elapsed < DISTURBANCE:
                quiet[name].append(elapsed)
    return {
        name: Timing(tuple(quiet[name] or everything[name]), repeats - len(quiet[name])) for name in contestants
    }


def read_bandwidth_kernels(threads: int) -> dict[str, Callable[[], None]]:
    """Streaming reads of 1 GiB by several kernels; the best of them in a run is that run's read bandwidth."""
    torch.set_num_threads(threads)
    words = torch.ones(GIB // 8, dtype=torch.int64)
    floats = words.view(torch.float32)
    return {
        "read int64 sum": lambda: words.sum().item() and None,
        "read float32 max": lambda: floats.max().item() and None,
        "read float32 dot": lambda: torch.dot(floats, floats).item() and None,
    }


def best_bandwidth(timings: Mapping[str, Timing]) -> float:
    """Bytes per second of the best streaming read among the timings of one interleaved run."""
    return max(GIB / min(t.seconds) for name, t in timings.items() if name.startswith("read "))


def peak_memory() -> int:
    """Bytes: the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(**figures: Any) -> None:
    """Print one figure as a JSON line; floats keep four significant digits."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)
