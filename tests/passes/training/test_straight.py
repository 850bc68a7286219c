"""Gradients through rounding: those of what is computed with the error in steps held where it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from planish.ir import Encoding, GroupedInt, Levels
from planish.ir.encodings import Grouped, rounded
from planish.ir.ops import QuantizeActivation
from planish.passes.training.activations import float_codes
from planish.passes.training.straight import straight

ENCODINGS: list[Grouped] = [
    GroupedInt(4, 8, torch.float32), GroupedInt(4, 4, torch.float32, zero_points=True), GroupedInt(2, 2, torch.float32),
    Levels("sign", 8, torch.float32), Levels("ternary", 4, torch.float32), Levels("stretched", 8, torch.float32),
]  # fmt: skip
STEP = 1e-6


def rows(seed: int) -> torch.Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    (function(leaf) * upstream).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def differences(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, upstream: torch.Tensor
) -> torch.Tensor:
    """Central ones. The functions here are linear where no other element becomes the largest."""
    found = torch.zeros_like(x)
    for place in range(x.numel()):
        for sign in (1, -1):
            moved = x.flatten().clone()
            moved[place] += sign * STEP
            found.view(-1)[place] += sign * (function(moved.view_as(x)) * upstream).sum() / (2 * STEP)
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Up to the roundings of sums of 24 numbers below 100 that differences divide by a step."""
    return float((found - expected).abs().max()) <= 24 * 100 * 2.0**-53 / STEP


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_a_scale_passes_on_what_its_steps_get(encoding: Grouped) -> None:
    x, upstream = rows(0), rows(1)
    held = rounded(encoding, x)

    def scale(of: torch.Tensor) -> torch.Tensor:
        return encoding.scale(of.unflatten(-1, (-1, encoding.group)))

    error = ((held - x).unflatten(-1, (-1, encoding.group))) / scale(x)

    def surrogate(of: torch.Tensor) -> torch.Tensor:
        return of + (scale(of) * error).flatten(-2)

    assert torch.equal(straight(x, partial(rounded, encoding), encoding), held)
    found = gradient(lambda leaf: straight(leaf, partial(rounded, encoding), encoding), x, upstream)
    assert close(found, differences(surrogate, x, upstream))
    assert not close(found, upstream)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_of_activations_do_the_same(bits: int) -> None:
    op, x, upstream = QuantizeActivation(bits), rows(2), rows(3)
    codes, scales = op.evaluate(x)
    error = codes - x / scales

    def surrogate(of: torch.Tensor) -> torch.Tensor:
        return of + error * of.abs().amax(-1, keepdim=True) / op.largest

    def product(leaf: torch.Tensor, scaled: bool) -> torch.Tensor:
        made, scale = float_codes(op, leaf, scaled)
        return made * scale

    found = gradient(partial(product, scaled=True), x, upstream)
    assert close(found, differences(surrogate, x, upstream))
    assert close(gradient(partial(product, scaled=False), x, upstream), upstream)


@pytest.mark.parametrize("encoding", [GroupedInt(4, 8), Levels("stretched", 4)], ids=str)
def test_groups_of_zeros_pass_gradients_straight(encoding: Encoding) -> None:
    upstream = rows(1)
    assert isinstance(encoding, Grouped)
    found = gradient(lambda x: straight(x, partial(rounded, encoding), encoding), torch.zeros(3, 8).double(), upstream)
    assert torch.equal(found, upstream)


def test_rows_of_zeros_have_codes_without_a_gradient() -> None:
    def product(leaf: torch.Tensor) -> torch.Tensor:
        made, scale = float_codes(QuantizeActivation(4), leaf, True)
        return made * scale

    assert not gradient(product, torch.zeros(3, 8).double(), rows(1)).any()
