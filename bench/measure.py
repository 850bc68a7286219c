"""Timing on a machine that others use too: candidates take turns, and what was disturbed is known.

Only what ran side by side can be compared, so every round runs each candidate once, and a ratio is the median of the
ratios within rounds. A round during which other processes used more than ``QUIET_CORES`` is disturbed: it is dropped
while any quiet round is left, and the result says how many were.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUIET_CORES = 0.12
TURN_SECONDS = 0.15
"""Long enough for the operating system's clock ticks of 10 ms to tell a disturbed round from a quiet one."""

SETTLING_SECONDS = 0.03

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Timings:
    """Seconds of one call of each candidate, by round.

    Attributes:
        rounds: the rounds kept.
        dropped: how many disturbed rounds were left out.
        disturbed: whether no round was quiet, so that disturbed ones were kept.
    """

    rounds: tuple[Mapping[str, float], ...]
    dropped: int
    disturbed: bool

    def median(self, name: str) -> float:
        """Median seconds of one call."""
        return statistics.median(taken[name] for taken in self.rounds)

    def best(self, name: str) -> float:
        """Seconds of one call in the fastest round."""
        return min(taken[name] for taken in self.rounds)

    def ratio(self, name: str, other: str) -> float:
        """Seconds of ``name`` over those of ``other``, the median of the rounds."""
        return statistics.median(taken[name] / taken[other] for taken in self.rounds)


def take_turns(candidates: Mapping[str, Callable[[int], object]], rounds: int) -> Timings:
    """Time ``candidates`` in ``rounds`` rounds; each is called with 0, 1, 2, ... for ``TURN_SECONDS`` in every round.

    A turn begins with calls that are not timed: the threads of the one before may still wait for work without sleeping.
    """
    calls = {name: _calls(call) for name, call in candidates.items()}
    samples: list[tuple[dict[str, float], bool]] = []
    for _ in range(rounds):
        busy, own = _cpu_seconds()
        begin = time.perf_counter()
        taken = {}
        for name, call in candidates.items():
            _settle(call)
            start = time.perf_counter()
            for number in range(calls[name]):
                call(number)
            taken[name] = (time.perf_counter() - start) / calls[name]
        elapsed = time.perf_counter() - begin
        now_busy, now_own = _cpu_seconds()
        samples.append((taken, (now_busy - busy) - (now_own - own) <= QUIET_CORES * elapsed))
    quiet_rounds = [taken for taken, was_quiet in samples if was_quiet]
    kept = quiet_rounds or [taken for taken, _ in samples]
    return Timings(tuple(kept), len(samples) - len(kept), not quiet_rounds)


def conditions(timings: Timings) -> dict[str, Any]:
    """What a figure says about the rounds that it comes from."""
    return {"rounds": len(timings.rounds), "dropped": timings.dropped, "disturbed": timings.disturbed}


def _settle(call: Callable[[int], object]) -> None:
    """Call for ``SETTLING_SECONDS``, and once at least."""
    end, number = time.perf_counter() + SETTLING_SECONDS, 0
    while number == 0 or time.perf_counter() < end:
        call(number)
        number += 1


def _calls(call: Callable[[int], object]) -> int:
    """How many calls last ``TURN_SECONDS``, found by doubling."""
    _settle(call)
    calls = 1
    while True:
        start = time.perf_counter()
        for number in range(calls):
            call(number)
        if time.perf_counter() - start > TURN_SECONDS / 2:
            return calls
        calls *= 2


def _cpu_seconds() -> tuple[float, float]:
    """Processor seconds used so far by everyone (the idle loop excepted) and by this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    own = usage.ru_utime + usage.ru_stime
    counters = Path("/proc/stat")
    if not counters.is_file():
        return own, own
    user, nice, system, _, _, *rest = map(int, counters.read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(rest)) / _TICKS, own
