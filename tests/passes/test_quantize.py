"""Which weights are quantised and how, how far plain rounding is off, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.ir import Dense, GroupedInt, InputError, IRError, NvFp4, dense_param
from planish.passes.pass_base import Context
from planish.passes.quantize import Quantize
from planish.passes.roles import roles
from planish.passes.selection import Rule
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
    chosen = Quantize(format=bits, group=group, scales="float32")  # type: ignore[arg-type]
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


def test_the_first_rule_that_fits_counts() -> None:
    module = tiny_decoder(**WIDE)
    rules = (
        Rule(match=r"^0\.q$", format=None),
        Rule(match=r"^0\.", format=2, group="row", method="mse"),
        Rule(kind="embedding", format=8),
        Rule(kind="head", format=8),
        Rule(match="q", kind="linear", format="nvfp4"),
        Rule(match="nothing", format=3),
    )
    result = Quantize(format=3, rules=rules).apply(module, Context())
    encodings = {name: param.encoding for name, param in result.module.params.items()}
    assert isinstance(encodings["0.q"], Dense) and isinstance(encodings["norm"], Dense)
    assert encodings["0.k"] == GroupedInt(2, 64) and encodings["0.down"] == GroupedInt(2, 96)
    assert encodings["embedding"] == GroupedInt(8, 32)
    assert encodings["1.q"] == NvFp4() and encodings["1.k"] == GroupedInt(3, 32)
    assert result.refusals == ("rule 6 (match: nothing) fits no dense weight that no rule before it fits",)
    only = Quantize(format=None, rules=(Rule(match="k$", format=4),)).apply(module, Context())
    assert only.matches == 2 and only.module.params["1.k"].encoding == GroupedInt(4, 32)
    bits = sum(8 * p.nbytes for p in result.module.params.values() if not isinstance(p.encoding, Dense))
    elements = sum(p.elements for p in result.module.params.values() if not isinstance(p.encoding, Dense))
    assert result.details["bits per weight"] == bits / elements


def test_no_format_and_no_rule_change_nothing() -> None:
    module = tiny_decoder(**WIDE)
    result = Quantize(format=None).apply(module, Context())
    assert result.matches == 0 and result.module is module


@pytest.mark.parametrize("format", [1, 2, 3, 4, 8, "sign", "ternary", "ternary2", "stretched"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_a_searched_scale_is_never_worse(format: Any, zero_points: bool) -> None:
    if zero_points and isinstance(format, str):
        with pytest.raises(InputError, match="zero points go with integers, not with the grid"):
            Quantize(format=format, zero_points=True).apply(tiny_decoder(**WIDE), Context())
        return
    module = tiny_decoder(**WIDE)
    options: dict[str, Any] = {"format": format, "group": "row", "zero_points": zero_points}
    errors = []
    for method in ("rtn", "mse"):
        result = Quantize(method=method, **options).apply(module, Context()).module
        weight, held = module.params["0.up"].value().double(), result.params["0.up"].value().double()
        assert result.params["0.up"].encoding.group == weight.shape[1]  # type: ignore[attr-defined]
        errors.append((held - weight).square().sum(-1))
    # Decoding to float32 rounds once more than the search does.
    assert bool((errors[1] <= errors[0] * (1 + 1e-5)).all())
    if format in (2, "ternary", "ternary2", "stretched"):
        assert bool((errors[1] < 0.9 * errors[0]).any())


def test_tied_weights_need_one_answer() -> None:
    sentence = "parameter 'embedding' is shared by embedding and head, which ask for different formats"
    with pytest.raises(InputError, match=sentence):
        Quantize(rules=(Rule(kind="embedding", format=None),)).apply(tiny_decoder(**WIDE), Context())


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(IRError, match=r"a group of 64 does not divide the last axis of f32\[64, 96\] \(96 elements\)"):
        Quantize(group=64).apply(tiny_decoder(**WIDE), Context())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    module = tiny_decoder(**WIDE)
    weight = module.params["0.q"].value().clone()
    weight[3, 5] = bad
    result = Quantize().apply(module.with_params([dense_param("0.q", weight)]), Context()).module
    with pytest.raises(InputError, match=r"parameter '0\.q' holds NaN or infinity"):
        result.params["0.q"].storage()


def test_floats_of_few_bits() -> None:
    module = tiny_decoder(**WIDE)
    weight = module.params["0.up"].value().double()
    errors = {}
    for method in ("rtn", "mse"):
        result = Quantize(format="nvfp4", method=method).apply(module, Context()).module  # type: ignore[arg-type]
        errors[method] = float((result.params["0.up"].value().double() - weight).square().sum())
    assert errors["mse"] < errors["rtn"]
    with pytest.raises(
        InputError, match="the method 'mse' has no search for mxfp4 of 'embedding'; choose 'rtn' for it"
    ):
        Quantize(format="mxfp4", method="mse").apply(module, Context())
    with pytest.raises(
        InputError, match="the method 'gptq' goes with groups of columns that share a scale, not with float8-row"
    ):
        Quantize(format="float8", method="gptq").apply(module, Context())


def test_scales_of_int8() -> None:
    module = tiny_decoder(hidden=128, size=32, inner=96)
    small = Quantize(format=3, group=16, scales="int8").apply(module, Context())
    encoding = small.module.params["0.up"].encoding
    assert encoding == GroupedInt(3, 16, torch.int8)
    # 8 groups to a row: 3 bits, 8 / 16 of a scale, and 16 / 128 of a block's.
    assert 8 * small.module.params["0.up"].nbytes == 96 * 128 * (3 + 8 / 16 + 16 / 128)
    weight = module.params["0.up"].value().double()
    errors = [
        float((m.params["0.up"].value().double() - weight).square().sum())
        for m in (small.module, Quantize(format=3, group=16).apply(module, Context()).module)
    ]
    assert errors[0] < 1.02 * errors[1], "a scale is off by a 254th of the block's largest at most"
    with pytest.raises(InputError, match="the method 'gptq' fits scales a group at a time, and scales of int8"):
        Quantize(method="gptq", scales="int8").apply(module, Context())


def test_a_rule_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(InputError, match=r"the rule's match '\(' is no regular expression"):
        Quantize(rules=(Rule(match="(", format=None),)).apply(tiny_decoder(**WIDE), Context())


@pytest.mark.parametrize("options", [{"format": 9}, {"group": "column"}, {"damping": -1.0}, {"average_bits": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"option '{next(iter(options))}"):
        Quantize.from_options(options)


@pytest.mark.parametrize("options", [{"method": "gptq"}, {"average_bits": 4.5}])
def test_what_needs_calibration_says_so(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="calibration data, and there are none"):
        Quantize(**options).apply(tiny_decoder(**WIDE), Context())
