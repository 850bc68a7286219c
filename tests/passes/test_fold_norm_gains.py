"""Folding gains and means: what vanishes on every architecture, what stays and why. The manager holds folds to `Exact`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

import planish
from planish.ir import Module
from planish.ir.ops import LayerNorm, RmsNorm
from planish.passes.dead_code import DeadCode
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.passes.quantize import Quantize
from planish.passes.report import Report
from planish.testing.architectures import traced_architecture
from planish.testing.torch_modules import randomize

RMS = partial(nn.RMSNorm, eps=1e-5)


def norms(module: Module) -> dict[str, int]:
    """How many norms of each kind there are, with and without gains and shifts."""
    found: dict[str, int] = {}
    for node in module.functions["forward"].nodes:
        if isinstance(node.op, (RmsNorm, LayerNorm)):
            kind = node.op.name + "+" * sum(o is not None for o in node.inputs[1:])
            found[kind] = found.get(kind, 0) + 1
    return found


def folded(module: Module) -> tuple[Module, Report]:
    return PassManager([FoldNormGains(), DeadCode()]).run(module)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "after", "stays"),
    [
        ("llama", {"rms_norm": 5}, ""),
        # Rotary embeddings read the norms of queries and keys.
        ("qwen3", {"rms_norm": 5, "rms_norm+": 4}, "rope is not linear along it"),
        # The router and every expert read the norms in front of the experts.
        ("qwen3_moe", {"rms_norm": 5, "rms_norm+": 4}, "rope is not linear along it"),
        ("opt", {"rms_norm": 5}, ""),
        ("gpt2", {"rms_norm": 5}, ""),
        # Norms behind a layer, whose results are added to the residual stream.
        ("gemma2", {"rms_norm": 5, "rms_norm+": 4}, "add"),
    ],
)
def test_norms_of_architectures(name: str, after: dict[str, int], stays: str) -> None:
    module = traced_architecture(name)
    result, report = folded(module)
    assert norms(result) == after
    refusals = report.passes[0].refusals
    assert bool(refusals) == bool(stays) and all(stays in refusal for refusal in refusals)


class Block(nn.Module):
    """A residual block of a width between tables and a head."""

    def __init__(
        self, norm: Callable[[int], nn.Module], *, bias: bool = True, tied: bool = False, last: bool = True
    ) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.first, self.final = norm(6), norm(6) if last else nn.Identity()
        self.up, self.down = nn.Linear(6, 10, bias=bias), nn.Linear(10, 6, bias=bias)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.places(torch.arange(5))
        x = x + self.down(torch.relu(self.up(self.first(x))))
        y: torch.Tensor = self.head(self.final(x))
        return y


def traced(network: nn.Module, *inputs: torch.Tensor) -> Module:
    randomize(network.eval(), torch.Generator().manual_seed(5))
    return planish.trace(network, inputs).module


IDS = torch.arange(10).reshape(2, 5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", [RMS, nn.LayerNorm])
def test_a_block_keeps_bare_norms(norm: Callable[[int], nn.Module], tied: bool, bias: bool) -> None:
    result, report = folded(traced(Block(norm, bias=bias, tied=tied), IDS))
    assert norms(result) == {"rms_norm": 2} and not report.passes[0].refusals
    tables = [p for p in result.params.values() if p.type.shape == (11, 6)]
    assert len(tables) == 2
    if norm is nn.LayerNorm:
        # What is written into the stream has no mean.
        written = [p for p in result.params.values() if p.type.shape in ((11, 6), (5, 6)) and "head" not in p.name]
        assert any(float(p.wide_value().mean(-1).abs().max()) < 1e-15 for p in written)


def test_a_mean_stays_where_the_stream_is_read_without_a_norm() -> None:
    result, report = folded(traced(Block(nn.LayerNorm, last=False), IDS))
    assert norms(result) == {"layer_norm": 1}
    (refusal,) = report.passes[0].refusals
    assert refusal.startswith("the mean of a layer_norm") and refusal.endswith("stays: linear reads it")


class Read(nn.Module):
    """A norm that something reads besides a linear map."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner, self.norm = how, nn.Linear(6, 6), RMS(6)
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.inner(x))
        if self.how == "returned":
            return y
        if self.how == "added":
            return self.layer(y + x)
        if self.how == "summed":
            return self.layer(y) + y.sum(-1, keepdim=True)
        return self.layer(torch.erfinv(y * 0.01)) + self.layer(y)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("returned", "forward returns it"),
        ("added", "adds something else to it"),
        ("summed", "sum.dim_IntList is not linear along it"),
        ("unknown", "erfinv.default declares nothing about its indices"),
    ],
)
def test_other_readers_keep_a_gain(how: str, sentence: str) -> None:
    result, report = folded(traced(Read(how), torch.randn(3, 6)))
    assert norms(result) == {"rms_norm+": 1}
    (refusal,) = report.passes[0].refusals
    assert refusal.startswith("the gain of a rms_norm") and sentence in refusal


def test_encoded_weights_are_refused() -> None:
    module = traced(Block(RMS), IDS)
    quantised, _ = PassManager([Quantize(format=8, group=2)], check=False).run(module)
    result, report = folded(quantised)
    assert norms(result)["rms_norm+"] == 2
    assert all("fold before weights are quantised" in r for r in report.passes[0].refusals)
