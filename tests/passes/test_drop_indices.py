"""Dropping indices: what is left does what it did with zeros there, on every architecture; scores, alignment, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import planish
from planish.ir import InputError, Interpreter, Module, dense_param
from planish.ir.spaces.action import act
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.structural_hash import content_hash
from planish.passes.calibration.data import Calibration
from planish.passes.derive_programs import DerivePrograms
from planish.passes.drop_indices import DropIndices, Dropping
from planish.passes.dropping import drop, keeps
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context
from planish.passes.quantize import Quantize
from planish.testing.architectures import CAUSAL, MIXTURES, traced_architecture

DROPPED = ("llama", "qwen3", "gemma2", "opt", "bloom", "gpt_neox", "deepseek_v3")


def logits(module: Module) -> torch.Tensor:
    function = module.functions["forward"]
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs = {v.name: ids if v.name == "input_ids" else torch.ones(2, 7, dtype=v.type.dtype) for v in function.inputs}
    return Interpreter(module, promote=True).run("forward", inputs)[0].double()


def zeroed(module: Module, spaces: Spaces, space: Space, kept: torch.Tensor) -> Module:
    """The module with zeros in all parameters where a space's indices are not kept."""
    params = []
    for name in dict.fromkeys(name for name, _ in space.parameters):
        param = module.params[name]
        value = act(param.value(), spaces.terms(("param", name)), space.atom, kept.to(param.type.dtype))
        params.append(dense_param(name, value))
    return module.with_params(params)


@pytest.mark.full
@pytest.mark.parametrize("name", [*(n for n in CAUSAL if n in DROPPED), *MIXTURES])
def test_what_is_left_does_what_it_did_with_zeros(name: str) -> None:
    """Every space that may be cut, a quarter of its indices: heads of keys, queries, elements, pairs, channels, stream."""
    module = traced_architecture(name)
    spaces = find_spaces(module)
    generator, cut = torch.Generator().manual_seed(1), 0
    for space in spaces.spaces:
        if space.size == 1 or not space.parameters or keeps(module, space):
            continue
        count = int(space.size)  # type: ignore[call-overload]
        kept = torch.randperm(count, generator=generator) >= max(1, count // 4)
        want = logits(zeroed(module, spaces, space, kept))
        got = logits(drop(module, spaces, {space.atom: kept}).module)
        assert float((got - want).abs().max()) <= 1e-12 * float(want.abs().max()), space.parameters
        cut += 1
    assert cut >= 5


@pytest.mark.full
def test_one_after_the_other_is_both_together_and_programs_may_be_derived_before_or_after() -> None:
    module = traced_architecture("llama")
    channels = Dropping(match="layers.0.mlp.up_proj", indices=(3, 4, 90))
    group = Dropping(match=r"\d.self_attn.k_proj", part=0, indices=(1,))

    def dropped(start: Module, *spaces: Dropping) -> Module:
        return DropIndices(spaces=spaces).apply(start, Context()).module

    def derived(start: Module) -> Module:
        return DerivePrograms().apply(start, Context()).module

    def hashes(of: Module) -> list[str]:
        return [content_hash(of, name) for name in sorted(of.functions)]

    both = dropped(module, channels, group)
    assert hashes(dropped(dropped(module, channels), group)) == hashes(both)
    assert hashes(dropped(dropped(module, group), channels)) == hashes(both)
    assert hashes(derived(both)) == hashes(dropped(derived(module), channels, group))
    assert {int(s.type.shape[2]) for s in derived(both).states.values()} == {1}  # type: ignore[call-overload]
    # Shapes of the stored tensors: two heads of keys became one, with the queries that read it.
    shapes = {name: tuple(param.type.shape) for name, param in both.params.items()}
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (32, 64)
    assert (
        shapes["model.layers.1.self_attn.k_proj.weight"] == shapes["model.layers.1.self_attn.v_proj.weight"] == (16, 64)
    )
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == (64, 32)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (64, 93)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (64, 96)
    assert all(param.storage()["values"].shape == param.type.shape for param in both.params.values())


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.relu(self.up(x)))
        return y


def hidden() -> Module:
    torch.manual_seed(0)
    return planish.trace(Hidden(), (torch.randn(2, 4),)).module


def kept_rows(module: Module, **options: Any) -> list[int]:
    """Which rows of the first weight stay when half of the hidden layer goes."""
    rule = Dropping(match="up.weight", fraction=0.5)
    context = Context(calibration=options.pop("calibration", None))
    result = DropIndices(spaces=(rule,), **options).apply(module, context).module
    old, new = (m.params["up.weight"].value() for m in (module, result))
    return [int((old == row).all(1).nonzero()) for row in new]


def test_what_counts_least_goes() -> None:
    module = hidden()
    up, bias, down = (module.params[n].value().double() for n in ("up.weight", "up.bias", "down.weight"))
    parts = [square / square.mean() for square in (up.square().sum(1), bias.square(), down.square().sum(0))]
    assert kept_rows(module) == sorted(torch.stack(parts).sum(0).argsort()[6:].tolist())
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    batches = Calibration(tuple({"x": rows} for rows in inputs.split(2)))
    energy = torch.relu(inputs.double() @ up.T + bias).square().mean(0) * down.square().sum(0)
    assert kept_rows(module, criterion="activation", calibration=batches) == sorted(energy.argsort()[6:].tolist())


@pytest.mark.parametrize(("align", "left"), [(1, 6), (4, 8), (5, 10), (7, 7), (16, 12)])
def test_as_many_stay_as_fill_a_multiple(align: int, left: int) -> None:
    module = hidden()
    if left == 12:
        rule = Dropping(match="up.weight", fraction=0.5)
        assert DropIndices(spaces=(rule,), align=align).apply(module, Context()).matches == 0
    else:
        assert len(kept_rows(module, align=align)) == left
        assert set(kept_rows(module)) <= set(kept_rows(module, align=align))


def test_the_manager_measures_what_is_lost() -> None:
    module = hidden()
    rule = Dropping(match="down.weight", axis=1, fraction=0.2)
    result, report = PassManager([DropIndices(spaces=(rule,), metric="relative_error")]).run(module)
    assert report.passes[0].details == {"spaces cut": 1, "indices dropped": 2}
    assert report.passes[0].nbytes == (4 * (4 * 12 + 12 + 12 * 3 + 3), 4 * (4 * 10 + 10 + 10 * 3 + 3))
    assert result.params["up.bias"].type.shape == (10,)


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ([{"match": "nothing"}], "no parameter's name holds a match of 'nothing'"),
        ([{"match": "("}], r"'\(' is no regular expression"),
        ([{"match": "up.weight", "axis": 2}], "has no axis 2"),
        ([{"match": "up.weight", "part": 1}], "axis 0 of up.weight is made of 12: it has no part 1"),
        ([{"match": "up.weight", "indices": (12,)}], "index 12 of up.weight is out of range: the space has 12 indices"),
        ([{"match": "up.weight", "indices": tuple(range(12))}], "nothing would be left of the 12 indices"),
        ([{"match": "up.weight"}], "give either the `indices` that go, or the `fraction`"),
        ([{"match": "up.weight", "indices": (1,), "fraction": 0.5}], "give either the `indices`"),
        ([{"match": "up.weight", "axis": 1, "indices": (1,)}], "of 4 indices .* stays: the module's border: an input"),
        ([{"match": "down.weight", "indices": (1,)}], "stays: the module's border: the output"),
        (
            [{"match": "up.weight", "indices": (1,)}, {"match": "down.weight", "axis": 1, "indices": (1,)}],
            "up.weight and down.weight have the same space of 12 indices, which is asked for by 'up.weight' and by",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_dropped_is_refused(rules: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        DropIndices(spaces=tuple(Dropping(**rule) for rule in rules)).apply(hidden(), Context())


def test_other_refusals() -> None:
    rule = Dropping(match="up.weight", indices=(1,))
    with pytest.raises(InputError, match=r"11 indices of .* would stay, which is no multiple of 4"):
        DropIndices(spaces=(rule,), align=4).apply(hidden(), Context())
    half = Dropping(match="up.weight", fraction=0.5)
    with pytest.raises(InputError, match="'activation' of pass 'drop-indices' needs calibration data"):
        DropIndices(spaces=(half,), criterion="activation").apply(hidden(), Context())
    encoded = Quantize(format=4, group="row", budget=9.0).apply(hidden(), Context()).module
    with pytest.raises(InputError, match="is encoded already: drop indices before weights are quantised"):
        DropIndices(spaces=(rule,)).apply(encoded, Context())


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 12), norm, nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(self.norm(self.up(x)))
        return y


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(12), nn.LayerNorm(12, bias=False), nn.LayerNorm(12, elementwise_affine=False)]
)
def test_a_mean_that_would_count_others_keeps_its_indices(norm: nn.Module) -> None:
    module = planish.trace(Normed(norm), (torch.randn(2, 4),)).module
    with pytest.raises(InputError, match="layer_norm: what it makes of the others depends on how many there are"):
        DropIndices(spaces=(Dropping(match="up.weight", indices=(1,)),)).apply(module, Context())


@pytest.mark.parametrize("gain", [True, False])
def test_lengths_are_taken_over_as_many_as_before(gain: bool) -> None:
    torch.manual_seed(1)
    module = planish.trace(Normed(nn.RMSNorm(12, 1e-2, elementwise_affine=gain)), (torch.randn(2, 4),)).module
    spaces = find_spaces(module)
    (space,) = spaces.of(("param", "up.weight"), 0)
    kept = torch.arange(12) % 3 > 0
    x = torch.randn(2, 4, dtype=torch.float64)
    want, got = (
        Interpreter(m, promote=True).run("forward", [x])[0]
        for m in (zeroed(module, spaces, space, kept), drop(module, spaces, {space.atom: kept}).module)
    )
    assert torch.allclose(got, want, rtol=1e-13)
    # One more parameter where there was none to take the factor.
    assert len(drop(module, spaces, {space.atom: kept}).module.params) == 5
