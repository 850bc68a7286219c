"""Changed parameters: computed part after part they are what they are as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from planish.ir.encodings import Dense
from planish.ir.params import InFile, Param
from planish.ir.types import TensorType
from planish.passes import param_changes
from planish.passes.param_changes import Change, changed

ROWS, COLUMNS = 23, 17


def times(axis: int, seed: int, whole: bool = True) -> Change:
    """Whole numbers multiplied in along an axis, so that sums are exact in any order."""
    size = (ROWS, COLUMNS)[axis]
    matrix = torch.randint(-3, 4, (size, size), generator=torch.Generator().manual_seed(seed)).double()

    def make(value: torch.Tensor) -> torch.Tensor:
        assert value.dtype == torch.float64
        return value @ matrix if axis else matrix @ value

    return Change(("times", axis, seed), make, frozenset((axis,)) if whole else None)


@pytest.fixture
def param(tmp_path: Path) -> Param:
    value = torch.randint(-9, 9, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"w": value}, tmp_path / "w.safetensors")
    source = InFile(tmp_path / "w.safetensors", {"values": "w"})
    return Param("w", TensorType(torch.float32, (ROWS, COLUMNS)), Dense(torch.bfloat16), source)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (((times(1, 1),),), True),
        (((times(0, 1),),), True),
        (((times(1, 1), times(1, 2)),), True),
        # One after the other, along the same axis and along another one; together both axes are needed whole.
        (((times(1, 1),), (times(1, 2),)), True),
        (((times(1, 1),), (times(0, 2),)), True),
        (((times(1, 1), times(0, 2)),), False),
        (((times(1, 1, whole=False),),), False),
    ],
)
def test_parts_are_the_whole(
    changes: tuple[tuple[Change, ...], ...], parts: bool, param: Param, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = param
    for of in changes:
        new = changed(new, "w", of)
    want = new.wide_value().float()
    seen: list[int] = []
    monkeypatch.setattr(param_changes, "PART_ELEMENTS", 40)
    watched = tuple(
        Change(c.key, lambda value, c=c: (seen.append(value.numel()), c.make(value))[1], c.whole)  # type: ignore[misc]
        for c in changes[-1]
    )
    new = param
    for of in (*changes[:-1], watched):
        new = changed(new, "w", of)
    assert torch.equal(new.storage()["values"], want)
    assert (max(seen) <= 40) == parts, seen
    assert sum(seen) == ROWS * COLUMNS * len(watched)
