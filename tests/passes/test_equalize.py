"""Equalising: results keep their bits, parameters become alike in size, and what may not be scaled is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import planish
from planish.ir import InMemory, Interpreter, Module
from planish.ir.encodings import Dense
from planish.ir.params import Param
from planish.ir.spaces.analysis import find_spaces
from planish.passes.equalize import Equalize
from planish.passes.manager import PassManager
from planish.passes.quantize import Quantize
from planish.testing.architectures import traced_architecture


def uneven(module: Module) -> Module:
    """The module with every matrix's rows and columns multiplied by drawn powers of two: another function."""
    generator = torch.Generator().manual_seed(7)
    params = []
    for name, param in module.params.items():
        value = param.value()
        if value.is_floating_point():
            value = value if bool(value.any()) else torch.randn(value.shape, generator=generator).to(value.dtype)
            for axis in range(value.ndim):
                powers = torch.randint(-2, 3, (value.shape[axis],), generator=generator)
                shape = [-1 if n == axis else 1 for n in range(value.ndim)]
                value = value * torch.ldexp(torch.ones(len(powers)), powers).reshape(shape).to(value.dtype)
        params.append(Param(name, param.type, Dense(param.type.dtype), InMemory({"values": value.contiguous()})))
    return module.with_params(params)


SCALED = {
    # By layer: gains and the maps behind them, what the gate multiplies; values; queries and keys where nothing turns them.
    "llama": ("mlp.up_proj.weight", "mlp.down_proj.weight", "self_attn.v_proj.weight", "input_layernorm.weight"),
    "gemma2": ("mlp.up_proj.weight", "mlp.down_proj.weight", "self_attn.v_proj.weight"),
    # Behind a rectifier: both maps, and the bias between them.
    "opt": ("fc1.weight", "fc1.bias", "fc2.weight", "self_attn.v_proj.bias", "self_attn.q_proj.weight"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", SCALED)
def test_architectures_keep_the_bits_of_their_logits(name: str) -> None:
    module = uneven(traced_architecture(name))
    result, report = PassManager([Equalize()]).run(module)
    details = report.passes[0].details
    assert float(details["octaves of spread after"]) < float(details["octaves of spread before"])
    changed = {n for n, p in result.params.items() if p.digest() != module.params[n].digest()}
    for end in SCALED[name]:
        assert any(n.endswith(end) for n in changed), end
    ids = torch.randint(0, 97, (1, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
    before, after = (Interpreter(m).run("forward", inputs).outputs for m in (module, result))
    for key in before:
        assert torch.equal(before[key], after[key]), key


class Squared(nn.Module):
    """The hidden layer behind the square of a rectifier."""

    def __init__(self, square: bool) -> None:
        super().__init__()
        self.square, self.up, self.down = square, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x))
        y: torch.Tensor = self.down(hidden * hidden if self.square else hidden)
        return y


@pytest.mark.parametrize("square", [False, True])
def test_by_hand(square: bool) -> None:
    network = Squared(square)
    with torch.no_grad():
        network.up.weight.copy_(torch.tensor([[64.0], [1], [1], [1 / 64]]).expand(4, 3))
        network.up.bias.zero_()
        network.down.weight.copy_(torch.ones(2, 4))
    module = planish.trace(network, (torch.randn(2, 3),)).module
    result, _ = PassManager([Equalize()]).run(module)
    up, down = (result.params[f"{n}.weight"].value() for n in ("up", "down"))
    # The least sum of squares: of six octaves, half go to each map, or with the square two fifths and four fifths.
    powers = torch.tensor([-3.0, 0, 0, 3] if not square else [-1.0, 0, 0, 1])
    assert torch.equal(up[:, 0], torch.tensor([64.0, 1, 1, 1 / 64]) * 2**powers)
    assert torch.equal(down[0], 2 ** (-(1 + square) * powers))


def test_a_power_is_limited() -> None:
    network = Squared(False)
    with torch.no_grad():
        network.up.weight.copy_(torch.tensor([[2.0**20], [1], [1], [2.0**-20]]).expand(4, 3))
        network.up.bias.zero_()
        network.down.weight.copy_(torch.ones(2, 4))
    module = planish.trace(network, (torch.randn(2, 3),)).module
    result, _ = PassManager([Equalize(limit=4)]).run(module)
    assert torch.equal(result.params["down.weight"].value()[0], 2.0 ** torch.tensor([4, 0, 0, -4]))


def test_dead_indices_stay_and_numbers_that_are_none_are_refused() -> None:
    network = Squared(False)
    with torch.no_grad():
        network.up.weight.copy_(torch.tensor([[64.0], [0], [1], [1 / 64]]).expand(4, 3))
        network.up.bias.zero_()
        network.down.weight.copy_(torch.tensor([1.0, 0, 1, 1]).expand(2, 4))
    module = planish.trace(network, (torch.randn(2, 3),)).module
    result, _ = PassManager([Equalize()]).run(module)
    assert torch.equal(result.params["down.weight"].value()[:, 1], torch.zeros(2))
    with torch.no_grad():
        network.up.weight[0, 0] = torch.nan
    module = planish.trace(network, (torch.randn(2, 3),), check=False).module
    refused = PassManager([Equalize()], check=False).run(module)[1].passes[0].refusals
    assert refused == ("up.weight has numbers that are not finite: the space of 4 indices stays",)


def test_encoded_weights_are_refused() -> None:
    module = traced_architecture("llama")
    module, _ = PassManager([Quantize(group=16)], check=False).run(module)
    refused = PassManager([Equalize()], check=False).run(module)[1].passes[0].refusals
    assert refused and all("equalise before weights are quantised" in r or "stays" in r for r in refused)


def test_scalings_solve_the_laws() -> None:
    module = planish.trace(Squared(True), (torch.randn(2, 3),)).module
    (space,) = (s for s in find_spaces(module).spaces if ("up.weight", 0) in s.parameters)
    (scaling,) = space.scalings()
    of = {key[1]: c for key, c in scaling.items() if isinstance(key, tuple)}
    assert of == {"up.weight": 1, "up.bias": 1, "down.weight": -2} and space.scales == 1
