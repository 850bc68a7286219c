"""Tiers of the suite and the profile of its property tests.

`--tier quick` (the default) runs what is unmarked, `--tier full` adds what is marked `full`, `--tier nightly` adds what is
marked `nightly`. An explicit `-m` expression decides alone.
"""

from __future__ import annotations

import pytest

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
