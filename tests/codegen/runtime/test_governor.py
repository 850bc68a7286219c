"""The number of threads follows what else runs on the machine. Time is simulated: nothing here depends on the real one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.codegen.runtime.governor import BETTER, KINDS, PART, Governor

QUIET = {1: 0.016, 2: 0.012}
CONTENDED = {1: 0.016, 2: 0.1}


@dataclass
class Machine:
    """A clock, and calls that take what the present conditions say."""

    now: float = 0.0

    def run(self, governor: Governor, costs: dict[int, float], seconds: float, kind: object = "decode") -> list[int]:
        """Calls one after the other for some time; the numbers of threads that they used."""
        end, used = self.now + seconds, []
        while self.now < end:
            threads = governor.choose(kind)
            self.now += costs[threads]
            governor.record(kind, threads, costs[threads])
            used.append(threads)
        return used


def governed(most: int = 2) -> tuple[Machine, Governor]:
    machine = Machine()
    return machine, Governor(most, lambda: machine.now)


def spent(used: list[int], costs: dict[int, float]) -> float:
    """Seconds of calls over what they would have taken at the best number of threads."""
    return sum(costs[n] for n in used) / (len(used) * min(costs.values()))


def test_a_quiet_machine_is_used_in_full() -> None:
    machine, governor = governed()
    used = machine.run(governor, QUIET, 10)
    assert spent(used, QUIET) < 1.01
    assert used[:3] == [2, 2, 2]


def test_a_contended_core_is_left_and_taken_back() -> None:
    machine, governor = governed()
    machine.run(governor, QUIET, 3)
    used = machine.run(governor, CONTENDED, 10)
    assert used[:2] == [2, 1], "one slow call is enough once the alternative is known"
    assert spent(used, CONTENDED) < 1.15
    back = machine.run(governor, QUIET, 10)
    assert spent(back, QUIET) < 1.1
    assert back[-100:].count(2) >= 95


def test_a_machine_that_is_contended_from_the_start() -> None:
    machine, governor = governed()
    used = machine.run(governor, CONTENDED, 10)
    assert spent(used[4:], CONTENDED) < 1.15


def test_a_slow_first_call_is_no_verdict() -> None:
    """The first calls touch their memory for the first time."""
    machine, governor = governed()
    for seconds in (0.5, 0.3):
        assert governor.choose("decode") == 2
        governor.record("decode", 2, seconds)
        machine.now += seconds
    used = machine.run(governor, QUIET, 5)
    assert spent(used, QUIET) < 1.02


def test_one_thread_is_one_thread() -> None:
    governor = Governor(1)
    assert {governor.choose(n) for n in range(100)} == {1}


def test_many_kinds_are_not_kept_for_ever() -> None:
    machine, governor = governed()
    for number in range(10 * KINDS):
        machine.run(governor, QUIET, 0.01, kind=number)
    assert len(governor._kinds) <= KINDS


def test_what_one_kind_found_out_is_where_others_start() -> None:
    machine, governor = governed()
    machine.run(governor, CONTENDED, 2)
    assert governor.choose("another") == 1


@given(
    most=st.integers(1, 12),
    phases=st.lists(
        st.tuples(st.floats(0.2, 5.0), st.floats(0.02, 0.1), st.floats(0.0, 1.0), st.floats(1.0, 10.0)), max_size=4
    ),
)
def test_trials_cost_little_whatever_happens(most: int, phases: list[tuple[float, float, float, float]]) -> None:
    """Whatever the conditions and however they change, the number is a legal one, and once conditions last, calls take
    hardly longer than with the best number of threads that is tried."""
    machine, governor = governed(most)
    tried = {n for n in (most, most - 1, most // 2, 1) if n >= 1}
    worst = 0.0
    for seconds, work, parallel, penalty in phases:

        def cost(n: int, work: float = work, parallel: float = parallel, penalty: float = penalty) -> float:
            return work * ((1 - parallel) + parallel / n) * (penalty if n == most > 1 else 1.0)

        costs = {n: cost(n) for n in tried}
        worst = max(worst, *costs.values())
        machine.run(governor, costs, seconds)
        # Long enough for every number to be tried again at the rarest, after the longest call there was.
        machine.run(governor, costs, 10 + 80 * worst)
        used = machine.run(governor, costs, 10 + 80 * max(costs.values()))
        assert set(used) <= tried
        best = min(costs.values())
        # Each of up to three others takes its part, and what is used may be short of being beaten.
        allowed = (1 + 3 * PART) * len(used) * best / BETTER
        assert sum(costs[n] for n in used) <= allowed + max(costs.values())


@pytest.mark.parametrize("most", [2, 3, 8])
def test_every_number_is_tried(most: int) -> None:
    machine, governor = governed(most)
    costs: dict[int, float] = {n: 0.01 + 0.001 * abs(n - most) for n in range(1, most + 1)}
    used = machine.run(governor, costs, 30)
    assert {most, most - 1, 1} <= set(used)
