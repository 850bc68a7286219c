"""Weights rounded to nearest: what is chosen, how far it is off, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.ir import Dense, GroupedInt, InputError, Interpreter, IRError, dense_param
from planish.passes import scale_search
from planish.passes.pass_base import Context
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.roles import roles
from planish.testing.tiny_decoder import tiny_decoder

WIDE = {"hidden": 64, "size": 16, "inner": 96}


def test_roles_are_read_off_the_data_flow() -> None:
    found = roles(tiny_decoder(layers=1))
    assert found["embedding"] == {"embedding", "head"}
    assert all(found[f"0.{n}"] == {"linear"} for n in ("q", "k", "v", "o", "gate", "up", "down"))
    assert "norm" not in found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 32])
def test_each_weight_is_within_half_a_step(bits: int, group: int) -> None:
    module = tiny_decoder(**WIDE)
    chosen = QuantizeWeights(linear=bits, embedding=bits, head=bits, group=group, scales="float32")  # type: ignore[arg-type]
    result = chosen.apply(module, Context())
    assert result.matches == 15
    for name, param in result.module.params.items():
        if not isinstance(param.encoding, GroupedInt):
            continue
        groups = module.params[name].value().unflatten(-1, (-1, group))
        decoded = param.value().unflatten(-1, (-1, group))
        step = groups.abs().amax(-1, keepdim=True) / 2 ** (bits - 1)
        error = (decoded - groups).abs()
        # The code range is asymmetric: the far end opposite to the largest magnitude is clamped by up to one step.
        assert bool((error <= step * (1 + 1e-5)).all())
        inner = groups.abs() <= step * (2 ** (bits - 1) - 1.5)
        assert bool((error <= step * (0.5 + 1e-5))[inner].all())


def test_roles_can_be_left_alone() -> None:
    module = tiny_decoder(**WIDE)
    result = QuantizeWeights(embedding=None, head=None).apply(module, Context()).module
    assert isinstance(result.params["embedding"].encoding, Dense)
    assert isinstance(result.params["0.q"].encoding, GroupedInt)
    kept = QuantizeWeights(ignore=(r"^0\.",)).apply(module, Context()).module
    assert isinstance(kept.params["0.q"].encoding, Dense) and isinstance(kept.params["1.q"].encoding, GroupedInt)


def test_decoding_the_weights_computes_the_same_as_integer_products() -> None:
    module = tiny_decoder(**WIDE)
    inputs = [torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.bool)]
    exact = Interpreter(module, promote=True).run("forward", inputs)[0]
    errors = []
    for activations in (None, "int8"):
        small = QuantizeWeights(activations=activations).apply(module, Context()).module  # type: ignore[arg-type]
        y = Interpreter(small, promote=True).run("forward", inputs)[0]
        errors.append(float((y - exact).norm() / exact.norm()))
    # Rounding activations to 8 bits adds little to rounding weights to 4.
    assert errors[0] < errors[1] * 1.2 and errors[1] < errors[0] * 1.2


@pytest.mark.parametrize("format", [1, 2, 3, 4, 8, "sign", "ternary", "ternary2", "stretched"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_a_searched_scale_is_never_worse(format: Any, zero_points: bool) -> None:
    if zero_points and isinstance(format, str):
        with pytest.raises(InputError, match="zero points go with integers, not with the grid"):
            QuantizeWeights(linear=format, zero_points=True).apply(tiny_decoder(**WIDE), Context())
        return
    module = tiny_decoder(**WIDE)
    options = {"linear": format, "embedding": None, "head": None, "group": "row", "zero_points": zero_points}
    errors = []
    for method in ("rtn", "mse"):
        result = QuantizeWeights(method=method, **options).apply(module, Context()).module
        weight, held = module.params["0.up"].value().double(), result.params["0.up"].value().double()
        assert result.params["0.up"].encoding.group == weight.shape[1]  # type: ignore[attr-defined]
        errors.append((held - weight).square().sum(-1))
    # Decoding to float32 rounds once more than the search does.
    assert bool((errors[1] <= errors[0] * (1 + 1e-5)).all())
    if format in (2, "ternary", "ternary2", "stretched"):
        assert bool((errors[1] < 0.9 * errors[0]).any())


def test_the_search_cuts_rows_without_changing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, encoding = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)), GroupedInt(3, 32)
    whole = scale_search.encode_searched(encoding, weight)
    monkeypatch.setattr(scale_search, "SLICE_ELEMENTS", 150)
    cut = scale_search.encode_searched(encoding, weight)
    assert all(torch.equal(whole[field], cut[field]) for field in whole)


def test_tied_weights_need_one_answer() -> None:
    sentence = "parameter 'embedding' is shared by embedding and head, which ask for different formats"
    with pytest.raises(InputError, match=sentence):
        QuantizeWeights(embedding=None, head=4).apply(tiny_decoder(**WIDE), Context())


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(IRError, match=r"a group of 64 does not divide the last axis of f32\[64, 96\] \(96 elements\)"):
        QuantizeWeights(group=64).apply(tiny_decoder(**WIDE), Context())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    module = tiny_decoder(**WIDE)
    weight = module.params["0.q"].value().clone()
    weight[3, 5] = bad
    result = QuantizeWeights().apply(module.with_params([dense_param("0.q", weight)]), Context()).module
    with pytest.raises(InputError, match=r"parameter '0\.q' holds NaN or infinity"):
        result.params["0.q"].storage()
