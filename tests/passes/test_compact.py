"""Compacting: what is dead goes, exactly, and nothing else does."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import planish
from planish.ir import Interpreter, Module, dense_param
from planish.ir.spaces.analysis import find_spaces
from planish.ir.spaces.laws import Family
from planish.ir.spaces.zeros import Zeros
from planish.passes.compact import Compact
from planish.passes.dropping import keeps
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context
from planish.passes.quantize import Quantize
from planish.testing.profiles import share

ACTIVATIONS = {"relu": F.relu, "square": lambda x: F.relu(x).square(), "none": lambda x: x, "shifted": lambda x: x + 1}


class Layers(nn.Module):
    """A stream to which hidden layers are added: plain, gated, or two side by side and joined."""

    def __init__(self, kinds: list[str], activation: str, bias: bool) -> None:
        super().__init__()
        self.kinds, self.activation = kinds, ACTIVATIONS[activation]
        self.first, self.last = nn.Linear(3, 6, bias), nn.Linear(6, 4, bias)
        self.ups = nn.ModuleList(nn.Linear(6, 5, bias) for _ in kinds)
        self.others = nn.ModuleList(nn.Linear(6, 5, bias) for _ in kinds)
        self.downs = nn.ModuleList(nn.Linear(10 if kind == "joined" else 5, 6, bias) for kind in kinds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for kind, up, other, down in zip(self.kinds, self.ups, self.others, self.downs):
            y = self.activation(up(x))
            if kind == "gated":
                y = y * other(x)
            if kind == "joined":
                y = torch.cat([y, other(x)], -1)
            x = x + down(y)
        y = self.last(x)
        return y


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A network of small integers, with rows, columns and elements that are zero, and inputs."""
    kinds = draw(st.lists(st.sampled_from(["plain", "gated", "joined"]), min_size=1, max_size=3))
    network = Layers(kinds, draw(st.sampled_from([*ACTIVATIONS])), draw(st.booleans()))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    share = draw(st.sampled_from([0.2, 0.5, 0.8]))
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))
            for axis in range(parameter.ndim):
                kept = torch.rand(parameter.shape[axis], generator=generator) >= share
                parameter *= kept.reshape([-1 if n == axis else 1 for n in range(parameter.ndim)])
    return network, torch.randint(-2, 3, (4, 3), generator=generator).float()


def dead_left(module: Module) -> int:
    """How many indices are dead, but for one where all of a space are."""
    spaces, count = find_spaces(module), 0
    zeros = Zeros(module, spaces)
    for space in spaces.spaces:
        if (
            space.family > Family.FIXED
            and isinstance(space.size, int)
            and space.parameters
            and not keeps(module, space)
        ):
            count += min(int(zeros.dead(space).sum()), space.size - 1)
    return count


@pytest.mark.full
def test_what_is_dead_goes_bit_for_bit() -> None:
    fired: Counter[str] = Counter()

    @share(0.4)
    @given(networks())
    def law(drawn: tuple[nn.Module, torch.Tensor]) -> None:
        network, x = drawn
        module = planish.trace(network, (x,), check=False).module
        result = Compact().apply(module, Context())
        fired["changed" if result.matches else "unchanged"] += 1
        fired["indices"] += int(result.details.get("indices dropped", 0))
        want, got = (Interpreter(m).run("forward", [x])[0] for m in (module, result.module))
        assert torch.equal(got, want)
        assert dead_left(result.module) == 0
        assert Compact().apply(result.module, Context()).matches == 0

    law()
    assert fired["changed"] >= 10 and fired["indices"] >= 30, fired


def build(**zeros: list[int]) -> Module:
    """A gated MLP of twelve channels in which some rows of `gate` and `up`, and columns of `down`, are zero."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(4, 12, False), nn.Linear(4, 12, False), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
            return y

    torch.manual_seed(0)
    network = Gated()
    with torch.no_grad():
        for name, indices in zeros.items():
            weight = getattr(network, name).weight
            (weight.T if name == "down" else weight)[indices] = 0
    return planish.trace(network, (torch.randn(2, 4),)).module


@pytest.mark.parametrize(("zeros", "left"), [({}, 12), ({"gate": [0]}, 11), ({"up": [0, 1]}, 10), ({"down": [11]}, 11),
                                             ({"gate": [1], "up": [2], "down": [3, 2]}, 9)])  # fmt: skip
def test_either_side_of_a_gate_or_a_column_kills_a_channel(zeros: dict[str, list[int]], left: int) -> None:
    module = build(**zeros)
    result, report = PassManager([Compact()]).run(module)
    assert result.params["gate.weight"].type.shape[0] == left
    assert report.passes[0].changed == (left < 12)


def test_numbers_of_dead_channels_do_not_matter() -> None:
    module = build(down=[3, 5])
    broken = module.params["up.weight"].value().clone()
    broken[[3, 5]] = torch.nan
    result = Compact().apply(module.with_params([dense_param("up.weight", broken)]), Context()).module
    x = torch.randn(2, 4)
    want, got = (Interpreter(m).run("forward", [x])[0] for m in (Compact().apply(module, Context()).module, result))
    assert torch.equal(want, got) and bool(got.isfinite().all())


@pytest.mark.parametrize(("align", "left"), [(1, 7), (4, 8), (8, 8), (5, 10), (16, 12)])
def test_zeros_fill_up_to_a_multiple(align: int, left: int) -> None:
    module = build(down=[0, 2, 4, 6, 8])
    result = Compact(align=align).apply(module, Context()).module
    assert result.params["down.weight"].type.shape[1] == left
    kept = result.params["up.weight"].value()
    alive = module.params["up.weight"].value()[[1, 3, 5, 7, 9, 10, 11]]
    assert all(bool((kept == row).all(1).any()) for row in alive)


def test_one_index_stays_of_a_space_that_is_dead() -> None:
    result, report = PassManager([Compact()]).run(build(down=list(range(12))))
    assert result.params["down.weight"].type.shape == (3, 1)
    assert report.passes[0].details == {"spaces cut": 1, "indices dropped": 11, "maps cut alone": 0}


def test_encoded_weights_keep_what_is_dead() -> None:
    encoded = Quantize(format=8, group="row", budget=9.0).apply(build(down=[1, 2]), Context()).module
    result = Compact().apply(encoded, Context())
    assert result.matches == 0
    (sentence,) = result.refusals
    assert sentence.startswith("2 dead indices of the 12 of ") and "encoded already" in sentence


class Heads(nn.Module):
    """Grouped-query attention, bare."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, n, False) for n in (24, 12, 12, 8))
        self.o = nn.Linear(24, 8, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x).view(2, 5, 4, 6), self.k(x).view(2, 5, 2, 6), self.v(x).view(2, 5, 2, 6)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), enable_gqa=True)
        y: torch.Tensor = self.o(mixed.transpose(1, 2).reshape(2, 5, 24))
        return y


@pytest.mark.parametrize(
    ("name", "kill", "shapes"),
    [
        # Values of a group: the group goes, with its queries.
        ("v", lambda w: w.view(2, 6, 8)[1].zero_(), {"q": (12, 8), "k": (6, 8), "v": (6, 8), "o": (8, 12)}),
        # What reads both queries of a group.
        ("o", lambda w: w.view(8, 2, 2, 6)[:, 0].zero_(), {"q": (12, 8), "k": (6, 8), "v": (6, 8), "o": (8, 12)}),
        # One query of each group.
        ("o", lambda w: w.view(8, 2, 2, 6)[:, :, 1].zero_(), {"q": (12, 8), "k": (12, 8), "v": (12, 8), "o": (8, 12)}),
        # An element of the values of all heads; of the keys; and of a head alone, which the others need.
        ("v", lambda w: w.view(2, 6, 8)[:, 3].zero_(), {"q": (24, 8), "k": (12, 8), "v": (10, 8), "o": (8, 20)}),
        ("k", lambda w: w.view(2, 6, 8)[:, 3].zero_(), {"q": (20, 8), "k": (10, 8), "v": (12, 8), "o": (8, 24)}),
        ("v", lambda w: w.view(2, 6, 8)[1, 3].zero_(), {"q": (24, 8), "k": (12, 8), "v": (12, 8), "o": (8, 24)}),
    ],
)  # fmt: skip
def test_heads_queries_and_elements(name: str, kill: object, shapes: dict[str, tuple[int, int]]) -> None:
    torch.manual_seed(0)
    network = Heads()
    with torch.no_grad():
        kill(getattr(network, name).weight)  # type: ignore[operator]
    module = planish.trace(network, (torch.randn(2, 5, 8),)).module
    result, _ = PassManager([Compact()]).run(module)
    assert {n: tuple(result.params[f"{n}.weight"].type.shape) for n in "qkvo"} == shapes


@pytest.mark.parametrize(("alone", "cut"), [(1.0, 0), (0.6, 0), (0.5, 2), (0.25, 3)])
def test_a_map_is_cut_by_itself_where_what_it_shares_lives(alone: float, cut: int) -> None:
    """Of a stream of eight, three maps use some: half of the columns of one and half of the rows of another are dead, and a
    quarter of both of the third; the bias of its first row keeps that."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.reads, self.writes, self.both, self.last = (nn.Linear(8, 8) for _ in range(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.first(x))
            x = x + torch.tanh(self.reads(x))
            x = x + self.writes(torch.tanh(x))
            y: torch.Tensor = self.last(x + self.both(x))
            return y

    network = Shared()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(1, 3, parameter.shape, generator=generator))
        network.reads.weight[:, :4] = 0
        network.writes.weight[4:] = network.writes.bias[4:] = 0
        network.both.weight[:2] = network.both.weight[:, 6:] = 0
        network.both.bias[1] = 0
    x = torch.randint(-2, 3, (3, 8), generator=generator).float()
    module = planish.trace(network, (x,), check=False).module
    result, report = PassManager([Compact(alone=alone)]).run(module)
    assert report.passes[0].details.get("maps cut alone", 0) == cut
    shapes = {tuple(p.type.shape) for name, p in result.params.items() if name.endswith("weight.live")}
    assert shapes == {0: set(), 2: {(8, 4), (4, 8)}, 3: {(8, 4), (4, 8), (8, 6)}}[cut]
    want, got = (Interpreter(m, promote=True).run("forward", [x])[0] for m in (module, result))
    assert torch.allclose(want, got, rtol=1e-13)
    assert (report.passes[0].nbytes[1] < report.passes[0].nbytes[0]) == bool(cut)
