"""The rotary embedding against float64 cosines of the float32 angle, for long positions and partial rotation."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.rope import STYLES, Rope, rope
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, gaussian

U = 2.0**-24
by_style = pytest.mark.parametrize("style", STYLES)
by_size = pytest.mark.parametrize(("size", "pairs"), [(64, 32), (80, 10), (25, 12), (2, 1), (130, 43)])


@cache
def compiled(config: Rope) -> Any:
    return compile_kernel(rope(config), config.tile)


def frequencies(pairs: int) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(pairs) / pairs)


def apply(config: Rope, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    # A slice without elements may keep strides that are not those of a compact tensor.
    x, positions = (
        x.clone(memory_format=torch.contiguous_format),
        positions.clone(memory_format=torch.contiguous_format),
    )
    y = torch.full_like(x, float("nan"))
    compiled(config)(x, positions, frequencies(config.pairs), y)
    return y


def pair_views(config: Rope, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if config.style == "half":
        return x[..., : config.pairs], x[..., config.pairs : 2 * config.pairs]
    return x[..., 0 : 2 * config.pairs : 2], x[..., 1 : 2 * config.pairs : 2]


@by_tile
@by_style
@by_size
def test_error_is_within_the_bound(tile: FloatTile, style: str, size: int, pairs: int) -> None:
    config = Rope(3, size, pairs, style, 1.25, tile)
    x, positions = gaussian(2, 6, 3, size, seed=1), torch.tensor([[0, 1, 17, 2047, 131071, 10**6], [-1, 5, 4, 3, 2, 1]])
    angle = (positions.float().unsqueeze(-1) * frequencies(pairs)).double().unsqueeze(2)
    a, b = pair_views(config, x.double())
    cosine, sine = 1.25 * angle.cos(), 1.25 * angle.sin()
    y = apply(config, x, positions)
    got_a, got_b = pair_views(config, y.double())
    # Cosine and sine: 2 ulp, that is 4 U, and U for the scale; a product and a fused multiply-add each add U.
    bound = (
        1.01 * 7 * U * ((a * cosine).abs() + (b * sine).abs()),
        1.01 * 7 * U * ((b * cosine).abs() + (a * sine).abs()),
    )
    assert bool(((got_a - (a * cosine - b * sine)).abs() <= bound[0]).all())
    assert bool(((got_b - (b * cosine + a * sine)).abs() <= bound[1]).all())
    assert torch.equal(y[..., 2 * pairs :], x[..., 2 * pairs :])


@by_tile
@by_style
def test_position_zero_changes_nothing(tile: FloatTile, style: str) -> None:
    x = gaussian(2, 3, 5, 24, seed=2)
    assert torch.equal(apply(Rope(5, 24, 12, style, 1.0, tile), x, torch.zeros(2, 3, dtype=torch.int64)), x)


@by_tile
@by_style
@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(2, 60), cut=st.integers(1, 59), seed=st.integers(0, 2**31))
def test_bits_do_not_depend_on_how_tokens_are_grouped(
    tile: FloatTile, style: str, batch: int, length: int, cut: int, seed: int
) -> None:
    config = Rope(2, 44, 21, style, 1.0, tile)
    x = gaussian(batch, length, 2, 44, seed=seed)
    positions = torch.randint(0, 5000, (batch, length), generator=torch.Generator().manual_seed(seed))
    whole, cut = apply(config, x, positions), min(cut, length - 1)
    parts = [apply(config, x[:, part], positions[:, part]) for part in (slice(0, cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(apply(config, x[-1:], positions[-1:]), whole[-1:])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="style 'spiral': use one of half, interleaved"):
        Rope(1, 4, 2, "spiral", 1.0, TILES[0])
    with pytest.raises(ValueError, match="3 frequencies must turn at least one and at most 4 elements"):
        Rope(1, 4, 3, "half", 1.0, TILES[0])
