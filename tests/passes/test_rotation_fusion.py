"""Rotating spaces: which they are on every architecture, what stays and why. The manager holds each fusion to `Exact`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

import planish
from planish.ir import Module
from planish.passes.dead_code import DeadCode
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.passes.report import Report
from planish.passes.rotation_fusion import Rotation, RotationFusion
from planish.testing.architectures import save_random_model

ROTATED = {
    # The stream and the values of each layer.
    "llama": (64, 16, 16),
    "qwen3": (64, 16, 16),
    # Without rotary embeddings queries and keys too.
    "opt": (64, 16, 16, 16, 16),
    "gpt2": (64, 16, 16, 16, 16),
    # Gains on what is added to the stream keep it as it is.
    "gemma2": (16, 16),
}


def rotated(module: Module, **options: Literal["normed", "free", "random"]) -> tuple[Module, Report]:
    fuse = RotationFusion(**options)  # type: ignore[arg-type]
    return PassManager([FoldNormGains(), DeadCode(), fuse]).run(module)


@pytest.mark.full
@pytest.mark.parametrize("name", ROTATED)
def test_the_spaces_of_architectures(name: str, tmp_path: Path) -> None:
    module = planish.trace(save_random_model(name, tmp_path), check=False).module
    result, report = rotated(module)
    record = report.passes[-1]
    assert record.details["spaces rotated"] == len(ROTATED[name])
    changed = [n for n, p in result.params.items() if p.digest() != module.params.get(n, p).digest()]
    assert len(changed) >= 2 * len(ROTATED[name])
    # The hidden layer of an MLP is what an activation function treats index by index.
    assert any("treats each index by itself" in refusal for refusal in record.refusals)
    stream = [r for r in record.refusals if "the space of 64 indices" in r]
    assert len(stream) == (name == "gemma2")
    if stream:
        assert "rms_norm" in stream[0]


@pytest.mark.full
def test_normed_and_free_spaces_are_told_apart(tmp_path: Path) -> None:
    module = planish.trace(save_random_model("llama", tmp_path), check=False).module
    counts = [rotated(module, spaces=which)[1].passes[-1].details["spaces rotated"] for which in ("normed", "free")]
    assert counts == [1, 2]


@pytest.mark.parametrize("size", [1, 2, 12, 50, 92, 128])
@pytest.mark.parametrize("kind", ["hadamard", "random"])
def test_drawn_matrices_are_orthogonal_and_follow_the_seed(kind: Literal["hadamard", "random"], size: int) -> None:
    matrix = Rotation(kind, size, 3).matrix
    assert float((matrix @ matrix.T - torch.eye(size)).abs().max()) < 1e-13
    assert torch.equal(matrix, Rotation(kind, size, 3).matrix)
    if size > 2:
        assert not torch.equal(matrix, Rotation(kind, size, 4).matrix)


def test_hadamard_rotations_spread_an_outlier() -> None:
    spread = Rotation("hadamard", 12, 0).matrix[0]
    assert float(spread.abs().max() - spread.abs().min()) < 1e-15
