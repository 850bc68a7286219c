"""Speeds of the machine: measured once, kept, and measured again when what was kept is not what belongs there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planish.targets.host.detect import HostCpu, detect_host
from planish.targets.host.measured import MEASUREMENTS, Speeds, cache_file, speeds

FIGURES = Speeds(bytes_per_second=1e10, float32=2e11, int8=8e11)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def never(cpu: HostCpu) -> Speeds:
    raise AssertionError("measured again")


def test_the_best_of_a_few_measurements_is_kept() -> None:
    cpu = detect_host()
    for number in range(MEASUREMENTS):
        drawn = replace(FIGURES, float32=1e11 * (number + 1), int8=8e11 / (number + 1))
        got = speeds(cpu, lambda cpu, drawn=drawn: drawn)  # type: ignore[misc]
    assert got == replace(FIGURES, float32=1e11 * MEASUREMENTS) == speeds(cpu, never)
    assert [p.name for p in cache_file(cpu).parent.iterdir()] == [cache_file(cpu).name], "nothing half-written stays"


def settle(cpu: HostCpu) -> None:
    for _ in range(MEASUREMENTS):
        assert speeds(cpu, lambda cpu: FIGURES) == FIGURES
    assert speeds(cpu, never) == FIGURES


def test_another_processor_has_its_own() -> None:
    cpu = detect_host()
    settle(cpu)
    for other in (replace(cpu, cores=cpu.cores + 1), replace(cpu, features=frozenset()), replace(cpu, model="Other")):
        assert cache_file(other) != cache_file(cpu)
        with pytest.raises(AssertionError, match="measured again"):
            speeds(other, never)


DAMAGED = ["", "{", "[]", "{}", "1", '{"measurements": 9}'] + [
    f'{{"measurements": {count}, "bytes_per_second": {speed}, "float32": 1.0, "int8": 1.0}}'
    for count, speed in ((9, -1.0), (9, "NaN"), (9, '"a"'), ('"9"', 1.0), (9, "1"))
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_measured_anew(text: str) -> None:
    cpu = detect_host()
    cache_file(cpu).parent.mkdir(parents=True)
    cache_file(cpu).write_text(text)
    settle(cpu)


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert speeds(detect_host(), lambda cpu: FIGURES) == FIGURES


@pytest.mark.full
def test_this_machine_has_speeds() -> None:
    for _ in range(MEASUREMENTS):
        speeds(detect_host())
    assert speeds(detect_host(), never).float32 > 0
