"""Gated activations against float64 within bounds that follow from the errors of the functions inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from planish.codegen.kernels.gated import BLOCK, GatedActivation, gated_activation
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, gaussian

U = 2.0**-24


def gelu_exact(x: torch.Tensor) -> torch.Tensor:
    """x * Phi(x) with all digits for negative x, which torch's formula loses even in float64."""
    return x * torch.special.erfc(x * -(0.5**0.5)) / 2


def gelu_tanh_exact(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))


# Each function in float64 and its relative error in U: one ulp is at most 2 U. The argument of gelu_tanh's sigmoid has
# a relative error of 4 U, which becomes an absolute one, times the argument, behind the exponential.
EXACT: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], Any]]] = {
    "silu": (lambda x: x * torch.sigmoid(x), lambda x: 2 * 2.5 + 1),
    "gelu": (gelu_exact, lambda x: 2 * 6 + 1),
    "gelu_tanh": (gelu_tanh_exact, lambda x: 2 * 2.5 + 1 + 4 * (1.6 * (x + 0.044715 * x**3)).abs()),
    "relu": (torch.relu, lambda x: 0),
}
by_name = pytest.mark.parametrize("name", EXACT)


@cache
def compiled(config: GatedActivation) -> Any:
    return compile_kernel(gated_activation(config), config.tile)


def apply(config: GatedActivation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(gate, float("nan"))
    inputs = [torch.cat([gate, up], -1)] if config.joined else [gate.contiguous(), up.contiguous()]
    compiled(config)(*inputs, y)
    return y


@by_tile
@by_name
def test_error_is_within_the_bound(tile: FloatTile, name: str) -> None:
    width = BLOCK + 2 * tile.lanes + 3
    gate, up = (
        gaussian(6, width, seed=1) * torch.tensor([[1e-3], [0.1], [1.0], [3.0], [8.0], [30.0]]),
        gaussian(width, seed=2),
    )
    up = up.expand_as(gate)
    function, relative = EXACT[name]
    exact = function(gate.double()) * up.double()
    bound = 1.01 * exact.abs() * (relative(gate.double()) + 1) * U + 2.0**-126 * up.abs()
    for joined in (False, True):
        y = apply(GatedActivation(name, width, tile, joined), gate, up)
        assert bool(((y.double() - exact).abs() <= bound).all())


@by_tile
@by_name
@pytest.mark.parametrize("width", [1, 70, 2 * BLOCK])
def test_both_forms_and_any_rows_give_the_same_bits(tile: FloatTile, name: str, width: int) -> None:
    gate, up = gaussian(40, width, seed=3) * 2, gaussian(40, width, seed=4)
    whole = apply(GatedActivation(name, width, tile), gate, up)
    assert torch.equal(apply(GatedActivation(name, width, tile, joined=True), gate, up), whole)
    for start, end in ((0, 1), (3, 4), (5, 40)):
        assert torch.equal(apply(GatedActivation(name, width, tile), gate[start:end], up[start:end]), whole[start:end])


@by_tile
def test_special_values(tile: FloatTile) -> None:
    gate = torch.tensor([[float("inf"), float("nan"), 0.0, 1e30, -1e30, -200.0]])
    for name in EXACT:
        y = apply(GatedActivation(name, 6, tile), gate, torch.ones_like(gate))
        assert bool(y[0, 1].isnan())
        assert torch.equal(y[0, [0, 2, 3, 4, 5]], torch.tensor([float("inf"), 0.0, 1e30, 0.0, 0.0]))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no kernel for the activation 'mish': use one of silu, gelu, gelu_tanh, relu"):
        GatedActivation("mish", 4, TILES[0])
    with pytest.raises(ValueError, match="at least one element, got 0"):
        GatedActivation("silu", 0, TILES[0])
