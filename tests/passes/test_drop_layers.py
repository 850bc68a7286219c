"""Layers: found by data flow on every architecture, and taken out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import planish
from planish.ir import InputError, Interpreter, Module
from planish.passes.calibration.data import Calibration
from planish.passes.derive_programs import DerivePrograms
from planish.passes.drop_layers import DropLayers, influences
from planish.passes.layers import find_layers
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context
from planish.testing.architectures import CAUSAL, traced_architecture
from planish.testing.networks import residual_network, vision_transformer


class Block(nn.Module):
    """Two maps beside each other, whose results are both added to what came in."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.one(x))
        return x + self.scale * y + self.other(y * x)


class Stack(nn.Module):
    def __init__(self, scales: list[float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(Block(6, scale) for scale in scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        y: torch.Tensor = self.last(torch.tanh(x))
        return y


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def traced(network: nn.Module) -> Module:
    return planish.trace(network, (X,), check=False).module


@pytest.mark.parametrize("dropped", [(0,), (3,), (1, 2), (0, 1, 3)])
def test_what_goes_into_a_layer_comes_out_of_it(dropped: tuple[int, ...]) -> None:
    network = Stack([0.9, 0.5, 2.0, 1.5])
    module = traced(network)
    result, report = PassManager([DropLayers(layers=dropped, metric="relative_error", budget=10.0)]).run(module)
    network.blocks = nn.ModuleList(block for n, block in enumerate(network.blocks) if n not in dropped)
    assert torch.allclose(Interpreter(result).run("forward", [X])[0], network(X), rtol=1e-5, atol=1e-6)
    left = {name for name in module.params if not any(f"blocks.{n}." in name for n in dropped)}
    assert {*result.params} == left
    assert report.passes[0].details == {"layers": 4, "dropped": ", ".join(map(str, dropped))}


def test_the_layers_that_change_least_go() -> None:
    network = Stack([2.0] * 5)
    with torch.no_grad():
        for number, size in enumerate((0.9, 0.02, 0.5, 0.01, 0.7)):
            network.blocks[number].scale = size  # type: ignore[assignment]
            network.blocks[number].other.weight *= size  # type: ignore[union-attr, operator]
    module = traced(network)
    data = Calibration(tuple({"x": torch.randn(5, 3, generator=torch.Generator().manual_seed(n))} for n in range(3)))
    layers = find_layers(module.functions["forward"])
    found = influences(module, layers, data)
    want = []
    for number in range(5):
        cosines = []
        for batch in data.batches:
            x = network.first(batch["x"])
            for block in network.blocks[:number]:
                x = block(x)
            cosines.append(torch.cosine_similarity(x, network.blocks[number](x), -1))
        want.append(1 - torch.cat(cosines).mean().double())
    assert torch.allclose(found, torch.stack(want), atol=1e-6)
    result = DropLayers(count=2).apply(module, Context(calibration=data))
    assert result.details["dropped"] == "1, 3"


@pytest.mark.full
@pytest.mark.parametrize("name", CAUSAL)
def test_layers_of_architectures(name: str) -> None:
    """Attention and MLP are one layer, one after the other or side by side, whatever windows alternate; what is left runs."""
    module = traced_architecture(name)
    assert len(find_layers(module.functions["forward"])) == 2
    result = DropLayers(layers=(0,)).apply(module, Context()).module
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs = {
        v.name: ids if v.name == "input_ids" else torch.ones(2, 7, dtype=v.type.dtype)
        for v in result.functions["forward"].inputs
    }
    assert bool(Interpreter(result).run("forward", inputs)[0].isfinite().all())
    assert not [n for n in result.params if ".0." in n]
    assert DerivePrograms().apply(result, Context()).matches


@pytest.mark.full
def test_layers_of_networks() -> None:
    for network, size, count in (
        (vision_transformer(28, 7, 24, 3, 3, 31), (28, 28), 3),
        # Only blocks of the first stage keep the shape, and the second of the others.
        (residual_network((8, 8), 3, 31), (43, 37), 3),
    ):
        module = planish.trace(network, (torch.randn(2, 3, *size),), check=False).module
        assert len(find_layers(module.functions["forward"])) == count


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": (4,)}, "there is no layer 4: 4 parts of 'forward' repeat and count as layers"),
        ({"count": 5}, "5 layers cannot go"),
        ({"count": 1}, "'drop-layers' with `count` needs calibration data"),
        ({"layers": (1,), "count": 1}, "not both"),
        ({"layers": (0, 1, 2, 3)}, "all 4 layers would go; keep one at least"),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        DropLayers(**options).apply(traced(Stack([2.0] * 4)), Context())


def test_more_refusals() -> None:
    alone = traced(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(InputError, match="there is no layer 0: 0 parts of 'forward' repeat"):
        DropLayers(layers=(0,)).apply(alone, Context())
    two = Module({"forward": alone.functions["forward"], "again": alone.functions["forward"]}, alone.params)
    with pytest.raises(InputError, match="drop layers before programs are derived"):
        DropLayers(layers=(0,)).apply(two, Context())
