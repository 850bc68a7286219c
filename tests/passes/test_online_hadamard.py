"""Transforms at run time: where they stand, what they leave alone and why. The manager holds each run to `Exact`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import planish
from planish.ir import InputError, Interpreter, Module, Node, dense_param
from planish.ir.ops import CacheAppend, Embedding, Hadamard, Linear
from planish.passes.dead_code import DeadCode
from planish.passes.derive_programs import DerivePrograms
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.fold_constants import FoldConstants
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.passes.online_hadamard import OnlineHadamard
from planish.passes.pass_base import Context, Pass
from planish.passes.quantize import Quantize
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_cache import QuantizeCache
from planish.passes.report import PassRecord
from planish.passes.rotation_fusion import RotationFusion
from planish.testing.architectures import traced_architecture
from planish.testing.networks import residual_network, vision_transformer
from planish.testing.tiny_decoder import tiny_decoder

WIDE = {"hidden": 64, "size": 16, "inner": 96}


def run(module: Module, *passes: object) -> tuple[Module, PassRecord]:
    """The result, every pass held to its contract, and the record of the last one."""
    result, report = PassManager(list(passes)).run(module)  # type: ignore[arg-type]
    return result, report.passes[-1]


def folded(module: Module) -> Module:
    passes = [FoldBatchNorm(), FoldConstants(), FoldNormGains(), DeadCode(), RotationFusion()]
    return PassManager(passes, check=False).run(module)[0]


def nodes(module: Module, op: type, function: str = "forward") -> list[Node]:
    return [node for node in module.functions[function].nodes if isinstance(node.op, op)]


def producers(module: Module, function: str, found: list[Node], number: int) -> list[str]:
    """The operations that make an operand of nodes."""
    made = module.functions[function].producers()
    return [made[n.inputs[number]].op.name if n.inputs[number] in made else "" for n in found]  # type: ignore[index]


# What is transformed: inputs, keys; and the transforms that takes, of which queries and keys need one each.
ARCHITECTURES = {
    "llama": (2, 2, 6),
    # Heads are normed, then turned, then transformed.
    "qwen3": (2, 2, 6),
    # Nothing turns their queries and keys: a rotation in the weights reaches them.
    "opt": (2, 0, 2),
    "gpt2": (2, 0, 2),
    # A quarter of each head is turned.
    "gpt_neox": (2, 2, 6),
    # Gains on what is added to the stream keep rotations from it, so what its 13 readers read is transformed, 7 times in all.
    "gemma2": (13, 2, 11),
    # A latent that is keys and values.
    "deepseek_v3": (2, 0, 2),
    "bert": (2, 0, 2),
    "pegasus": (4, 0, 4),
}


@pytest.mark.full
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str) -> None:
    module = folded(traced_architecture(name))
    result, record = run(module, OnlineHadamard(keys=True))
    inputs, keys, transforms = ARCHITECTURES[name]
    assert record.details == {"inputs transformed": inputs, "keys transformed": keys}
    found = nodes(result, Hadamard)
    assert len(found) == transforms
    assert {n.op.block for n in found if n.op.block == n.output.type.shape[-1]} == {n.op.block for n in found}  # type: ignore[attr-defined]
    if name == "qwen3":
        attended = [n for n in found if n.output.type.rank == 4]
        assert producers(result, "forward", attended, 0) == ["rope"] * 4
    stays = {"deepseek_v3": "the values are the same tensor", "bert": "select.int: it declares nothing"}
    assert all(stays[name] in sentence for sentence in record.refusals) if name in stays else not record.refusals
    again, record = run(result, OnlineHadamard(keys=True))
    assert again is result and record.matches == 0


@pytest.mark.full
def test_networks_without_text() -> None:
    for network, count in ((vision_transformer(28, 7, 24, 3, 2, 31), 2), (residual_network((5, 9, 14), 1, 31), 1)):
        module = planish.trace(network, (torch.randn(2, 3, 28, 28),), check=False).module
        _, record = run(folded(module), OnlineHadamard())
        assert record.details["inputs transformed"] == count


def test_readers_of_one_value_share_its_transform_and_a_tied_table_is_parted() -> None:
    """With gains on its norms the stream takes no rotation, so everything that reads it is behind a transform."""
    module = tiny_decoder(layers=1, **WIDE)
    result, record = run(module, OnlineHadamard())
    # Queries, keys and values; gate and up; down; the head. What the heads give is rotated by weights.
    assert record.details["inputs transformed"] == 7 and len(nodes(result, Hadamard)) == 4
    assert "hadamard" not in producers(result, "forward", [nodes(result, Linear)[3]], 0)
    (table,), head = nodes(result, Embedding), nodes(result, Linear)[-1]
    assert table.inputs[1].name == "embedding" and head.inputs[1].name == "embedding.parted"  # type: ignore[union-attr]
    assert result.params["embedding"] is module.params["embedding"]
    (want,) = Hadamard(64).evaluate(module.params["embedding"].wide_value())
    assert torch.equal(result.params["embedding.parted"].wide_value(), want)


def test_behind_rotations_only_the_hidden_layer_is_left() -> None:
    module = folded(tiny_decoder(**WIDE))
    result, record = run(module, OnlineHadamard())
    assert record.matches == 2 and not record.refusals
    assert [n.op for n in nodes(result, Hadamard)] == [Hadamard(96)] * 2
    changed = {n for n, p in result.params.items() if p.digest() != module.params[n].digest()}
    assert changed == {"0.down", "1.down"}
    kept, record = run(module, OnlineHadamard(ignore=("^0.",)))
    assert record.matches == 1 and kept.params["0.down"] is module.params["0.down"]


def test_caches_hold_transformed_keys_and_a_token_transforms_its_own() -> None:
    module = folded(tiny_decoder(**WIDE))
    derived, _ = run(module, OnlineHadamard(inputs=False, keys=True), DerivePrograms())
    for program in ("prefill", "extend", "decode"):
        appends = nodes(derived, CacheAppend, program)
        keys = [n for n in appends if n.inputs[0].name.endswith(".k")]  # type: ignore[union-attr]
        assert producers(derived, program, keys, 1) == ["hadamard"] * 2
        found = nodes(derived, Hadamard, program)
        assert len(found) == 4 and producers(derived, program, found, 0) == ["rope"] * 4
        if program == "decode":
            assert all(n.output.type.shape[1] == 1 for n in found)


def test_keys_are_done_before_programs_are_derived_and_inputs_at_any_time() -> None:
    derived, _ = run(folded(tiny_decoder(layers=1, **WIDE)), DerivePrograms())
    result, record = run(derived, OnlineHadamard(keys=True))
    assert record.details == {"inputs transformed": 4, "keys transformed": 1}
    assert all("they come from a state" in sentence for sentence in record.refusals) and record.refusals
    assert sum(len(nodes(result, Hadamard, program)) for program in derived.functions) == 4 + 2
    assert set(result.params) == set(derived.params)


def test_outliers_are_spread() -> None:
    """Of a vector with one element, the transform has the same length and n elements of 1 / sqrt(n) of it."""
    module = folded(tiny_decoder(layers=1, **WIDE))
    result, _ = run(module, OnlineHadamard())
    (found,) = nodes(result, Hadamard)
    x = torch.zeros(96, dtype=torch.float64).index_fill(0, torch.tensor(5), 7.0)
    (y,) = found.op.evaluate(x)
    assert torch.allclose(y.abs(), torch.full_like(y, 7 / 96**0.5), rtol=1e-15, atol=0)


def with_outliers(**scales: float) -> Module:
    """A decoder one of whose channels is so many times as large in the rows of some weights."""
    module = folded(tiny_decoder(layers=1, **WIDE))
    params = []
    for name, scale in scales.items():
        value = module.params[f"0.{name}"].value().clone()
        value[5] *= scale
        params.append(dense_param(f"0.{name}", value))
    return module.with_params(params)


CODES: tuple[Pass, ...] = (Quantize(format=8, group=32), QuantizeActivations(bits=4, ignore=("^(?!0.down)",)))
CACHES: tuple[Pass, ...] = (DerivePrograms(), QuantizeCache(keys="int4", values=None))


@pytest.mark.parametrize(
    ("scales", "online", "lossy"),
    [
        ({"up": 40.0}, OnlineHadamard(), CODES),
        ({"k": 40.0, "q": 0.05}, OnlineHadamard(inputs=False, keys=True), CACHES),
    ],
    ids=["hidden layer", "keys"],
)
def test_outliers_cost_less_behind_a_transform(scales: dict[str, float], online: Pass, lossy: tuple[Pass, ...]) -> None:
    """Four bits have so few levels that it shows."""
    module, ids = with_outliers(**scales), torch.arange(9)[None] % 11
    inputs = {"input_ids": ids, "attention_mask": torch.ones(1, 9, dtype=torch.bool)}
    exact = Interpreter(module, promote=True).run("forward", inputs)[0]
    errors = []
    for passes in (lossy, (online, *lossy)):
        made, _ = PassManager(list(passes), check=False).run(module)
        if made.states:
            first = {"input_ids": ids, "start": torch.tensor([0]), "length": torch.tensor([9])}
            got = Interpreter(made, promote=True).run("extend", first, bindings={"C": 9})[0]
        else:
            got = Interpreter(made, promote=True).run("forward", inputs)[0]
        errors.append(float((got - exact).norm() / exact.norm()))
    assert errors[1] < errors[0], errors


def test_what_is_quantised_already_stays() -> None:
    small = Quantize(format=4, group=32).apply(folded(tiny_decoder(layers=1, **WIDE)), Context()).module
    refusals = OnlineHadamard().apply(small, Context()).refusals
    assert refusals == (
        "the input of the linear map with 0.down stays: the weight is encoded already: transform inputs before weights "
        "are quantised",
    )
    whole = QuantizeActivations().apply(small, Context()).module
    result = OnlineHadamard().apply(whole, Context())
    assert result.module is whole
    assert any("transform it before activations are quantised" in sentence for sentence in result.refusals)


class Hidden(nn.Module):
    """Two maps with an operation between them, whose input is the module's."""

    def __init__(self, unknown: bool, size: int = 8) -> None:
        super().__init__()
        self.unknown, self.up, self.down = unknown, nn.Linear(4, size), nn.Linear(size, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.up(x)
        y: torch.Tensor = self.down(torch.erfinv(inner * 0.01) if self.unknown else torch.relu(inner))
        return y


def test_borders_unknown_operations_and_odd_sizes_are_named() -> None:
    def refusals(network: nn.Module) -> tuple[str, ...]:
        module = planish.trace(network, (torch.randn(2, 4),)).module
        return run(module, OnlineHadamard())[1].refusals

    border = "the input of the linear map with up.weight stays: the module's border: an input of forward"
    assert refusals(Hidden(False)) == (border,)
    unknown = (
        "the input of the linear map with down.weight stays: erfinv.default: it declares nothing about its indices"
    )
    assert refusals(Hidden(True)) == (border, unknown)
    odd = "the input of the linear map with down.weight stays: there is no Hadamard matrix of a size that divides 7"
    assert refusals(Hidden(False, 7)) == (border, odd)


def test_keys_of_a_head_without_blocks_stay() -> None:
    module = tiny_decoder(layers=1, size=9, hidden=16)
    result, record = run(module, OnlineHadamard(inputs=False, keys=True))
    assert result is module and "no Hadamard matrix of a size that divides 9" in record.refusals[0]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"'\(' in `ignore` is no regular expression"):
        OnlineHadamard(ignore=("(",)).apply(tiny_decoder(layers=1), Context())


def test_float32_too() -> None:
    """Per logit within what float32 loses on the module itself, the largest of all."""
    module = folded(tiny_decoder(**WIDE))
    result, _ = run(module, OnlineHadamard(keys=True))
    inputs = [torch.randint(0, 11, (2, 9)), torch.ones(2, 9, dtype=torch.bool)]
    exact, wide = (Interpreter(m, promote=True).run("forward", inputs)[0] for m in (module, result))
    single, other = (Interpreter(m).run("forward", inputs)[0].double() for m in (module, result))
    own = float((single - exact).abs().max())
    assert float((wide - exact).abs().max()) <= own and float((other - exact).abs().max()) <= 4 * own
