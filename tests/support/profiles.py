"""Hypothesis profiles: how many examples, and whether a run repeats the one before.

`HYPOTHESIS_PROFILE` chooses: `dev` (the default; random), `ci` (the default where `CI` is set; the same examples each
time) or `nightly` (many examples).
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Drawing a module builds tensors, and machines that run tests are shared: slowness is no fault of a strategy.
_COMMON = {"deadline": None, "suppress_health_check": (HealthCheck.too_slow, HealthCheck.data_too_large)}


def load_profile() -> str:
    """Register the profiles and load the chosen one; returns its name."""
    settings.register_profile("dev", max_examples=100, **_COMMON)  # type: ignore[arg-type]
    settings.register_profile("ci", max_examples=100, derandomize=True, print_blob=True, **_COMMON)  # type: ignore[arg-type]
    settings.register_profile("nightly", max_examples=5000, print_blob=True, **_COMMON)  # type: ignore[arg-type]
    name = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
    settings.load_profile(name)
    return name


def share(fraction: float) -> settings:
    """Settings with that fraction of the profile's examples, for properties whose examples are costly."""
    return settings(max_examples=max(1, int(settings().max_examples * fraction)))
