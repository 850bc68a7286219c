"""Freezing gates: a network of one shared branch and one for each task becomes a plain one that does the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planish
from planish.ir import Interpreter, Module, dense_param
from planish.ir.ops import Aten, Conv2d, Linear
from planish.passes.freeze_gates import FreezeGates
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context
from planish.testing.gated_networks import GatedConvolutions, GatedTransformer
from planish.testing.profiles import share


def products(module: Module) -> int:
    """Multiplications of linear maps and convolutions in one call of `forward`."""
    total = 0
    for node in module.functions["forward"].nodes:
        if isinstance(node.op, (Linear, Conv2d)):
            weight, y = node.input_types[1], node.output.type
            assert weight is not None
            outputs = 1
            for n, dim in enumerate(y.shape):
                outputs *= int(dim) if n != (1 if isinstance(node.op, Conv2d) else y.rank - 1) else 1  # type: ignore[call-overload]
            elements = 1
            for dim in weight.shape:
                elements *= int(dim)  # type: ignore[call-overload]
            total += outputs * elements
    return total


def overloads(module: Module) -> Counter[str]:
    return Counter(n.op.overload for n in module.functions["forward"].nodes if isinstance(n.op, Aten))


def whole_numbers(network: nn.Module, seed: int) -> None:
    """Small whole numbers for all weights; gates stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "alpha" not in name and "beta" not in name:
            with torch.no_grad():
                parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))


@st.composite
def gated(draw: st.DrawFn) -> tuple[GatedConvolutions, torch.Tensor]:
    widths = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    # Of one, two or four tasks the mixture has weights that are powers of two.
    network = GatedConvolutions(draw(st.sampled_from([1, 2, 4])), [2, *widths], selects=draw(st.booleans()))
    seed = draw(st.integers(0, 10**6))
    whole_numbers(network, seed)
    share = draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "alpha" in name:
            with torch.no_grad():
                parameter.copy_(torch.where(torch.rand(parameter.shape, generator=generator) < share, 1.0, -1.0))
    return network.eval(), torch.randint(-2, 3, (2, 2, 5, 4), generator=generator).float()


@pytest.mark.full
def test_frozen_networks_are_the_gated_ones_bit_for_bit() -> None:
    fired: Counter[str] = Counter()

    @share(0.25)
    @given(gated())
    def law(drawn: tuple[GatedConvolutions, torch.Tensor]) -> None:
        network, x = drawn
        module = planish.trace(network, (x,), check=False).module
        result = FreezeGates().apply(module, Context())
        want, got = (Interpreter(m).run("forward", [x]).outputs for m in (module, result.module))
        assert [*want] == [*got] and all(torch.equal(want[name], got[name]) for name in want)
        assert all(torch.equal(a, b) for a, b in zip(network(x), got.values()))
        assert not overloads(result.module) & Counter({"where.self": 1})
        assert products(result.module) <= products(module)
        fired["gates"] += result.matches
        fired["fewer"] += products(result.module) < products(module)
        again = FreezeGates().apply(result.module, Context())
        assert again.matches == 0

    law()
    assert fired["gates"] >= 50 and fired["fewer"] >= 10, fired


def frozen(network: nn.Module, x: torch.Tensor) -> tuple[Module, Module]:
    module = planish.trace(network, (x,), check=False).module
    result, _ = PassManager([FreezeGates()]).run(module)
    return module, result


@pytest.mark.parametrize("own", [True, False])
def test_all_own_is_one_network_a_task_and_all_shared_is_one(own: bool) -> None:
    network = GatedConvolutions(2, [3, 4, 5]).eval()
    for name, parameter in network.named_parameters():
        if "alpha" in name:
            nn.init.constant_(parameter, 1.0 if own else -1.0)
    module, result = frozen(network, torch.randn(1, 3, 6, 6))
    convolutions = [n.inputs[1].name for n in result.functions["forward"].nodes if isinstance(n.op, Conv2d)]  # type: ignore[union-attr]
    # Two tasks with two layers each, and no shared branch; or the shared branch alone.
    assert len(convolutions) == (4 if own else 2)
    assert all(("shared" in name) != own for name in convolutions)
    assert not overloads(result) & Counter({"index_select.default": 1, "cat.default": 1})
    assert products(result) < products(module)


def test_unread_channels_may_hold_anything() -> None:
    torch.manual_seed(0)
    network = GatedConvolutions(1, [2, 4]).eval()
    with torch.no_grad():
        network.alpha[0][0].copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    x = torch.randn(1, 2, 5, 5)
    clean = frozen(network, x)[1]
    module = planish.trace(network, (x,), check=False).module
    broken = module.params["own.0.0.weight"].value().clone()
    broken[[1, 3]] = torch.nan
    result = FreezeGates().apply(module.with_params([dense_param("own.0.0.weight", broken)]), Context()).module
    want, got = (Interpreter(m).run("forward", [x])[0] for m in (clean, result))
    assert torch.equal(want, got)


class DependentGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.gate = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(self.gate(x) > 0, self.one(x), self.other(x))


def test_a_gate_that_depends_on_inputs_stays_and_is_named() -> None:
    module = planish.trace(DependentGate(), (torch.randn(2, 3),), check=False).module
    result = FreezeGates().apply(module, Context())
    assert result.matches == 0 and result.module is module
    (sentence,) = result.refusals
    assert "its condition depends on the inputs" in sentence and sentence.startswith("selection at")


class Crossed(nn.Module):
    """A condition along two axes, and one side that is repeated."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.arange(12.0).reshape(3, 4)[: shape[0], : shape[1]] % 3 - 1)
        self.map = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.map(x)
        return torch.where(self.alpha > 0, y, y[:1] if self.alpha.shape[0] == 1 else x)


@pytest.mark.parametrize(
    ("shape", "sentence"), [((3, 4), "changes along several axes"), ((1, 4), "one side is repeated")]
)
def test_other_selections_stay(shape: tuple[int, ...], sentence: str) -> None:
    module = planish.trace(Crossed(shape), (torch.randn(3, 4),), check=False).module
    result = FreezeGates().apply(module, Context())
    assert result.matches == 0 and any(sentence in refusal for refusal in result.refusals), result.refusals


def trained(network: Any, x: torch.Tensor, targets: torch.Tensor, steps: int) -> float:
    """Train with straight-through gates and a hinge on how many channels are a task's own; the last loss."""
    network.train()
    gates = [p for n, p in network.named_parameters() if "alpha" in n]
    rest = [p for n, p in network.named_parameters() if "alpha" not in n]
    optimiser = torch.optim.Adam([{"params": gates, "lr": 0.1}, {"params": rest, "lr": 0.01}])
    for _ in range(steps):
        optimiser.zero_grad()
        loss = sum(F.mse_loss(y, target) for y, target in zip(network(x), targets)) + network.hinge(0.3)
        loss.backward()
        optimiser.step()
    network.eval()
    return float(loss.detach())


@pytest.mark.full
@pytest.mark.parametrize("kind", ["convolutions", "transformer"])
def test_trained_networks(kind: str) -> None:
    """The manager holds the frozen network to the gated one; fewer products and parameters are left."""
    torch.manual_seed(0)
    network: Any
    if kind == "convolutions":
        network, x = GatedConvolutions(2, [3, 8, 12, 8]), torch.randn(16, 3, 9, 9)
    else:
        network, x = GatedTransformer(2, width=16, heads=2, layers=2), torch.randn(16, 6, 16)
    targets = torch.stack([y.detach() for y in type(network)(*network.made_of)(x)])
    first = trained(network, x, targets, 1)
    assert trained(network, x, targets, 60) < first
    shares = [float((p > 0).float().mean()) for n, p in network.named_parameters() if "alpha" in n]
    assert 0 < sum(shares) / len(shares) < 0.6
    module, result = frozen(network, x)
    assert not overloads(result) & Counter({"where.self": 1})
    elements = [sum(p.elements for p in m.params.values() if p.type.dtype.is_floating_point) for m in (module, result)]
    assert products(result) < 0.8 * products(module) and elements[1] < 0.8 * elements[0]
    want = network(x)
    got = Interpreter(result).run("forward", [x])
    for number, y in enumerate(want):
        assert float((got[number] - y).abs().max()) <= 1e-4 * float(y.abs().max())
