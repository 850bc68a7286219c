"""Tiers of the suite and the profile of its property tests.

`--tier quick` (the default) runs what is unmarked, `--tier full` adds what is marked `full`, `--tier nightly` adds what is
marked `nightly`. An explicit `-m` expression decides alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import planish.passes.manager as manager
from planish.ir import Module, parse_module, print_module, structural_hash, verify
from planish.testing.profiles import load_profile

_TIERS = ("quick", "full", "nightly")
PROFILE = load_profile()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=_TIERS, default="quick", help="how much of the suite to run (default: quick)")


def pytest_report_header(config: pytest.Config) -> str:
    return f"tier: {config.getoption('--tier')}, hypothesis profile: {PROFILE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    left_out = _TIERS[_TIERS.index(config.getoption("--tier")) + 1 :]
    dropped = [item for item in items if any(item.get_closest_marker(tier) for tier in left_out)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        kept = set(map(id, items)) - set(map(id, dropped))
        items[:] = [item for item in items if id(item) in kept]


def _verify_and_round_trip(module: Module) -> None:
    """What the manager calls a verified module, parsed back from its text, is the same module."""
    verify(module)
    parsed = parse_module(print_module(module), module.params)
    assert structural_hash(parsed) == structural_hash(module), "the text form does not parse back to the same module"


@pytest.fixture(autouse=True, scope="session")
def round_trips() -> Iterator[None]:
    """Every module that any test hands to the pass manager, and every module that a pass makes there, round-trips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "verify", _verify_and_round_trip)
        yield
