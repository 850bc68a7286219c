"""The norms against float64 within a derived bound, and the same bits for a row in any company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.norms import Norm, layer_norm, rms_norm
from planish.codegen.kernels.quantize_activation import QuantizeActivation, quantize_activation
from planish.codegen.kernels.vectors import CHAINS
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, gaussian

U = 2.0**-24
EPSILON = 1e-5
KERNELS: dict[str, Callable[[Norm], Any]] = {"rms_norm": rms_norm, "layer_norm": layer_norm}
by_name = pytest.mark.parametrize("name", KERNELS)
by_width = pytest.mark.parametrize("width", [1, 5, 64, 129, 1000])


@cache
def compiled(name: str, config: Norm) -> Any:
    return compile_kernel(KERNELS[name](config), config.tile)


def apply(name: str, config: Norm, x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    y, total = torch.full_like(x, float("nan")), torch.full_like(x, float("nan"))
    compiled(name, config)(x.contiguous(), *rest, *([total] if config.residual else []), y)
    return y, total if config.residual else None


def exact_and_bound(
    name: str, config: Norm, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64, and how far rounding may take float32: first order in U, with the order of the sums."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    additions = -(-config.width // (CHAINS * config.tile.lanes)) + CHAINS + 5
    mean = x.mean(-1, keepdim=True) if name == "layer_norm" else torch.zeros_like(x[:, :1])
    mean_error = (additions + 1) * U * x.abs().mean(-1, keepdim=True) if name == "layer_norm" else 0.0
    centred = x - mean
    centred_error = mean_error + U * centred.abs()
    variance = centred.square().mean(-1, keepdim=True)
    variance_error = (2 * centred.abs() * centred_error).mean(-1, keepdim=True) + (additions + 2) * U * variance
    scale = (variance + EPSILON).rsqrt()
    scale_error = scale * (variance_error / (2 * (variance + EPSILON)) + 3 * U)
    y = centred * scale * weight + bias
    error = weight.abs() * (centred_error * scale + centred.abs() * (scale_error + 2 * U * scale)) + U * y.abs()
    return y, 1.01 * error


@by_tile
@by_name
@by_width
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_error_is_within_the_bound(tile: FloatTile, name: str, width: int, offset: float) -> None:
    config = Norm(width, EPSILON, tile, bias=True)
    x = gaussian(9, width, seed=1) * 3 + offset
    weight, bias = gaussian(width, seed=2), gaussian(width, seed=3)
    exact, bound = exact_and_bound(name, config, x, weight, bias)
    y, _ = apply(name, config, x, weight, bias)
    assert bool(((y.double() - exact).abs() <= bound).all())


@by_tile
@by_name
def test_optional_operands(tile: FloatTile, name: str) -> None:
    x, residual = gaussian(3, 45, seed=1), gaussian(3, 45, seed=2)
    weight, bias = gaussian(45, seed=3), gaussian(45, seed=4)
    plain, _ = apply(name, Norm(45, EPSILON, tile, weight=False), x)
    weighted, _ = apply(name, Norm(45, EPSILON, tile), x, weight)
    assert torch.equal(weighted, plain * weight)
    full = Norm(45, EPSILON, tile, bias=True, residual=True)
    y, total = apply(name, full, x, residual, weight, bias)
    assert total is not None and torch.equal(total, x + residual)
    alone, _ = apply(name, Norm(45, EPSILON, tile, bias=True), x + residual, weight, bias)
    assert torch.equal(y, alone)


@by_tile
@by_name
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 200), seed=st.integers(0, 2**31))
def test_bits_of_a_row_do_not_depend_on_the_others(tile: FloatTile, name: str, rows: int, seed: int) -> None:
    config = Norm(111, EPSILON, tile, bias=True)
    x, weight, bias = gaussian(rows, 111, seed=seed), gaussian(111, seed=2), gaussian(111, seed=3)
    whole, _ = apply(name, config, x, weight, bias)
    for start in range(0, rows, 37):
        part, _ = apply(name, config, x[start : start + 37], weight, bias)
        assert torch.equal(part, whole[start : start + 37])
    assert all(
        torch.equal(apply(name, config, x[r : r + 1], weight, bias)[0], whole[r : r + 1]) for r in range(rows)[:3]
    )


@pytest.mark.full
@by_tile
@by_name
@pytest.mark.parametrize("width", [5, 64, 111])
@pytest.mark.parametrize("residual", [False, True])
def test_quantised_rows_have_the_bits_of_two_kernels(tile: FloatTile, name: str, width: int, residual: bool) -> None:
    inputs = [gaussian(7, width, seed=seed) for seed in (1, 2)][: 1 + residual]
    weight, bias = gaussian(width, seed=3), gaussian(width, seed=4)
    inputs[0][3], inputs[-1][3] = 0, 0
    inputs[0][4, 0] = float("nan")
    config, quantize = Norm(width, EPSILON, tile, bias=True, residual=residual), QuantizeActivation(width, tile)
    y, total = apply(name, config, *inputs, weight, bias)
    expected = torch.empty(y.shape, dtype=torch.int8), torch.empty(7, 1)
    compile_kernel(quantize_activation(quantize), tile)(y, *expected)
    found = torch.empty(y.shape, dtype=torch.int8), torch.full((7, 1), -1.0)
    sums = [torch.empty_like(y)] if residual else []
    compiled(name, replace(config, quantize=quantize))(*inputs, weight, bias, *sums, *found)
    for one, other in zip((*found, *sums), (*expected, *([total] if residual else [])), strict=True):
        assert other is not None and torch.equal(one.nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))
    assert bool(found[1][4].isnan())


@by_tile
def test_exact_values(tile: FloatTile) -> None:
    """Rows whose statistics are exact: +-a has mean 0 and root mean square a."""
    x = torch.tensor([1.0, -1.0]).repeat(50) * torch.tensor([[4.0], [0.5], [0.0]])
    for name in KERNELS:
        y, _ = apply(name, Norm(100, 0.0, tile, weight=False), x)
        assert torch.equal(y[:2], x[:2].sign()) and bool(y[2].isnan().all())


def test_refusal() -> None:
    with pytest.raises(ValueError, match="at least one element, got 0"):
        Norm(0, EPSILON, TILES[0])
