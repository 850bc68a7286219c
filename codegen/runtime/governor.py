"""How many threads a call of compiled code should use, learnt from how long calls take.

The threads of compiled code share out each loop while it runs, but none goes on before what another one has begun is done.
On a core that another process keeps busy, a thread may wait for its turn longer than the loop takes, and so do all the
others, hundreds of times a second: two threads on two cores, one of them contended, can be slower than one thread alone.
Results have the same bits with any number of threads, so the number may change from call to call.

For each kind of call (a function and the sizes of its arguments) the governor keeps the recent time at a few numbers of
threads, uses the fastest, and tries another one now and then: at once when it turns out better, ever more rarely when it
does not, and never for more than a small part of the time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

SOONEST, LATEST = 0.05, 1.0
"""Seconds until the next trial: after a change, and at most, doubling in between."""
PART = 0.05
"""The share of the time that trials may take."""
BETTER = 0.9
"""A number of threads takes over when its time is below this share of the present one's."""
WARM = 3
"""Calls before the first trial: the first ones also touch their memory for the first time."""
KINDS = 64


@dataclass
class _Kind:
    """What is known of one kind of call: recent seconds and how often they were measured, by number of threads."""

    present: int
    seconds: dict[int, float] = field(default_factory=dict)
    measured: dict[int, int] = field(default_factory=dict)
    tried: dict[int, int] = field(default_factory=dict)
    wait: float = SOONEST
    next_trial: float = 0.0


class Governor:
    """Decides for each call, between one thread and `most`.

    Args:
        most: the number of threads to use while nothing else runs.
        clock: seconds, for tests.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.most = most
        self._clock = clock
        self._choices = sorted({n for n in (most, most - 1, most // 2, 1) if n >= 1}, reverse=True)
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()
        self._latest = most

    def choose(self, kind: Hashable) -> int:
        """The number of threads for the next call of a kind."""
        if len(self._choices) == 1:
            return self.most
        known = self._kinds.get(kind)
        if known is None:
            # What other kinds of calls have found out is the best guess.
            known = self._kinds[kind] = _Kind(self._latest)
            if len(self._kinds) > KINDS:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(kind)
        if known.measured.get(known.present, 0) < WARM or self._clock() < known.next_trial:
            return known.present
        others = [n for n in self._choices if n != known.present]
        return min(others, key=lambda n: (known.tried.get(n, 0), -n))

    def record(self, kind: Hashable, threads: int, seconds: float) -> None:
        """Learn how long a call took with the number of threads that was chosen for it."""
        known = self._kinds.get(kind)
        if known is None:
            return
        before, count = known.seconds.get(threads), known.measured.get(threads, 0)
        if before is None or threads != known.present:
            # What a trial showed long ago says nothing about now.
            known.seconds[threads] = seconds
        else:
            known.seconds[threads] = min(before, seconds) if count < WARM else (before + seconds) / 2
        known.measured[threads] = count + 1
        if threads != known.present:
            known.tried[threads] = known.tried.get(threads, 0) + 1
            promising = seconds < known.seconds[known.present]
            self._wait(known, SOONEST if promising else min(2 * known.wait, LATEST), seconds)
        best = min(known.seconds, key=known.seconds.__getitem__)
        if known.seconds[best] < BETTER * known.seconds[known.present]:
            known.present = self._latest = best
            self._wait(known, SOONEST, seconds)

    def _wait(self, known: _Kind, wait: float, seconds: float) -> None:
        known.wait = wait
        known.next_trial = self._clock() + max(wait, seconds / PART)
