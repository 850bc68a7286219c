"""Tiers of the suite and the profile of its property tests.

`--tier quick` (the default) runs what is unmarked, `--tier full` adds what is marked `full`, `--tier nightly` adds what is
marked `nightly`. An explicit `-m` expression decides alone.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from weakref import WeakSet

import pytest
import torch

from planish.ir import Function, Module, Param, PlanishError, parse_module, print_module, structural_hash, verify
from planish.testing.profiles import load_profile

_TIERS = ("quick", "full", "nightly")
PROFILE = load_profile()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=_TIERS, default="quick", help="how much of the suite to run (default: quick)")


def pytest_configure(config: pytest.Config) -> None:
    # Workers that each start a thread for every core wait for each other: torch's small operations take ten times as long.
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # A tenth of the time went into looking for cycles among what torch and transformers hold for good.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_report_header(config: pytest.Config) -> str:
    return f"tier: {config.getoption('--tier')}, hypothesis profile: {PROFILE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Two workers take files in turns: begun last, a long one leaves the other worker idle.
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
    if config.option.markexpr:
        return
    left_out = _TIERS[_TIERS.index(config.getoption("--tier")) + 1 :]
    dropped = [item for item in items if any(item.get_closest_marker(tier) for tier in left_out)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        kept = set(map(id, items)) - set(map(id, dropped))
        items[:] = [item for item in items if id(item) in kept]


class RoundTrips:
    """Every module built while tests run, unless the verifier refuses it, is the same module once printed and parsed.

    A pass shares what it did not change: each function and each parameter, known by the object, is looked at once.
    """

    def __init__(self) -> None:
        self.count = 0
        self._busy = False
        self._seen: WeakSet[Function | Param] = WeakSet()

    def check(self, module: Module) -> None:
        """Called for each module as it is built; those that parsing builds in turn are left alone."""
        if self._busy:
            return
        self._busy = True
        try:
            self._check(self._unseen(module))
        finally:
            self._busy = False

    def _unseen(self, module: Module) -> Module:
        """The module without functions that were looked at before, and without such parameters as are not read then."""
        functions = {name: f for name, f in module.functions.items() if f not in self._seen}
        read = {r.name for f in functions.values() for r in f.references()}
        params = {name: p for name, p in module.params.items() if name in read or p not in self._seen}
        return Module(functions, params, module.states, module.metadata)

    def _check(self, module: Module) -> None:
        # Nearly all are legal, and to ask that takes longer than to print and parse one: who fails is asked.
        try:
            parsed = parse_module(print_module(module), module.params)
            same = structural_hash(parsed) == structural_hash(module)
        except Exception:
            if _legal(module):
                raise
            return
        if not same:
            assert not _legal(module), f"the text form does not parse back to the same module:\n{module}"
            return
        self._seen.update([*module.functions.values(), *module.params.values()])
        self.count += 1


def _legal(module: Module) -> bool:
    try:
        verify(module)
    except PlanishError:
        return False
    return True


@pytest.fixture(autouse=True, scope="session")
def round_trips() -> Iterator[RoundTrips]:
    """Watches the modules of the whole run: built by tests, frontends, passes or the parser."""
    trips, build = RoundTrips(), Module.__post_init__

    def watched(module: Module) -> None:
        build(module)
        trips.check(module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Module, "__post_init__", watched)
        yield trips
