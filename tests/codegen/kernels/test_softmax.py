"""Softmax against float64 within a derived bound, at special values, and row by row."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.softmax import Softmax, softmax
from planish.codegen.kernels.vectors import CHAINS
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, gaussian

U = 2.0**-24


@cache
def compiled(config: Softmax) -> Any:
    return compile_kernel(softmax(config), config.tile)


def apply(config: Softmax, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, float("nan"))
    compiled(config)(x.contiguous(), y)
    return y


@by_tile
@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 300), spread=st.sampled_from([0.1, 5.0, 100.0]), seed=st.integers(0, 2**31))
def test_error_is_within_the_bound(tile: FloatTile, width: int, spread: float, seed: int) -> None:
    x = gaussian(5, width, seed=seed) * spread
    y, exact = apply(Softmax(None, tile), x), x.double().softmax(-1)
    # The difference from the largest is rounded once, and an error there is a relative one behind the exponential.
    argument = U * (x.double().amax(-1, keepdim=True) - x.double()).abs()
    additions = width / (CHAINS * tile.lanes) + CHAINS + 6
    relative = argument + (exact * argument).sum(-1, keepdim=True) + (additions + 5) * U
    assert bool(((y.double() - exact).abs() <= 1.01 * exact * relative + 2.0**-126).all())


@by_tile
@pytest.mark.parametrize("width", [1, 16, 100])
def test_known_and_unknown_width_agree_row_by_row(tile: FloatTile, width: int) -> None:
    x = gaussian(50, width, seed=1) * 4
    whole = apply(Softmax(None, tile), x)
    assert torch.equal(apply(Softmax(width, tile), x), whole)
    for start, end in ((0, 1), (1, 3), (7, 50)):
        assert torch.equal(apply(Softmax(width, tile), x[start:end]), whole[start:end])


@by_tile
def test_special_values(tile: FloatTile) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[0.0, -inf, 0.0], [-inf] * 3, [inf, 0.0, 0.0], [nan, 0.0, 1.0], [1e30, -1e30, 0.0], [7.0] * 3])
    got = apply(Softmax(3, tile), x)
    assert torch.equal(got.isnan(), x.softmax(-1).isnan())
    assert torch.equal(got.nan_to_num(), x.softmax(-1).nan_to_num())


@by_tile
def test_equal_elements_share_evenly(tile: FloatTile) -> None:
    for count in (1, 2, 64, 128):
        assert torch.equal(apply(Softmax(count, tile), torch.full((2, count), -3.0)), torch.full((2, count), 1 / count))


def test_refusal() -> None:
    with pytest.raises(ValueError, match="at least one element, got 0"):
        Softmax(0, TILES[0])
