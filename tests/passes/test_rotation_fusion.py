"""Rotating spaces: which they are on every architecture, what stays and why. The manager holds each fusion to `Exact`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import nn

import planish
from planish.ir.ops import LayerNorm, RmsNorm
from planish.passes.dead_code import DeadCode
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.fold_constants import FoldConstants
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.passes.rotation_fusion import Rotation, RotationFusion
from planish.testing.architectures import traced_architecture
from planish.testing.networks import residual_network, vision_transformer

ROTATED = {
    # The stream and the values of each layer.
    "llama": (64, 16, 16),
    "qwen3": (64, 16, 16),
    "qwen3_moe": (64, 16, 16),
    # Without rotary embeddings queries and keys too.
    "opt": (64, 16, 16, 16, 16),
    "gpt2": (64, 16, 16, 16, 16),
    # Gains on what is added to the stream keep it as it is.
    "gemma2": (16, 16),
}


@pytest.mark.full
@pytest.mark.parametrize("name", ROTATED)
def test_the_spaces_of_architectures(name: str) -> None:
    module = traced_architecture(name)
    # Folding is held to its contract by its own tests.
    folded, _ = PassManager([FoldNormGains(), DeadCode()], check=False).run(module)
    result, report = PassManager([RotationFusion()]).run(folded)
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
@pytest.mark.parametrize(
    ("network", "size", "rotated"),
    [
        # The stream, from the patches and the learned places to the head, and the values of each layer.
        (lambda: vision_transformer(28, 7, 24, 3, 2, 31), (28, 28), 3),
        (lambda: vision_transformer(28, 7, 24, 3, 1, 31, False), (28, 28), 2),
        # Every channel goes through an activation function.
        (lambda: residual_network((5, 9, 14), 1, 31), (43, 37), 0),
    ],
    ids=["vision transformer", "mean of patches", "residual network"],
)
def test_the_spaces_of_networks(network: Callable[[], nn.Module], size: tuple[int, int], rotated: int) -> None:
    module = planish.trace(network(), (torch.randn(2, 3, *size),), check=False).module
    passes = [FoldBatchNorm(), FoldConstants(), FoldNormGains(), DeadCode(), RotationFusion()]
    result, report = PassManager(passes).run(module)
    assert report.passes[-1].details.get("spaces rotated", 0) == rotated
    norms = [n.op for n in result.functions["forward"].nodes if isinstance(n.op, (LayerNorm, RmsNorm))]
    assert not any(isinstance(op, LayerNorm) for op in norms)
    if not rotated:
        assert all("relu.default" in r or "the module's border" in r for r in report.passes[-1].refusals)


class Stream(nn.Module):
    """A sum between two linear maps, on which, or beside which, an operation works that declares nothing."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.table, self.up, self.down, self.head = (nn.Linear(a, b) for a, b in ((3, 8), (8, 6), (6, 8), (8, 5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.table(x)
        inner = self.up(stream)
        inner = torch.erfinv(inner * 0.01) if self.where == "beside" else inner
        stream = stream + self.down(inner)
        y: torch.Tensor = self.head(torch.erfinv(stream * 0.01) if self.where == "on" else stream)
        return y


@pytest.mark.parametrize(("where", "sizes"), [("nowhere", [6, 8]), ("beside", [8]), ("on", [6])])
def test_an_unknown_operation_keeps_the_spaces_that_it_reads(where: str, sizes: list[int]) -> None:
    module = planish.trace(Stream(where), (torch.randn(2, 3),)).module
    result, report = PassManager([RotationFusion()]).run(module)
    record = report.passes[0]
    names = {6: "up.weight", 8: "down.weight"}
    changed = {n for n, p in result.params.items() if p.digest() != module.params[n].digest()}
    assert record.details["spaces rotated"] == len(sizes)
    refused = [r for r in record.refusals if "erfinv.default: it declares nothing about its indices" in r]
    for size, name in names.items():
        if size in sizes:
            assert name in changed
        else:
            (sentence,) = refused
            assert sentence.startswith(f"the space of {size} indices")


@pytest.mark.full
def test_normed_and_free_spaces_are_told_apart() -> None:
    module = traced_architecture("llama")
    folded, _ = PassManager([FoldNormGains(), DeadCode()], check=False).run(module)
    for which, count in (("normed", 1), ("free", 2)):
        fuse = RotationFusion(kind="random", spaces=which)  # type: ignore[arg-type]
        assert PassManager([fuse]).run(folded)[1].passes[0].details["spaces rotated"] == count


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
