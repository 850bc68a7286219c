"""Laws of the activation quantisation kernel: torch's bits, rows that know nothing of each other, rows not finite."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.quantize_activation import PARALLEL_ELEMENTS, QuantizeActivation, quantize_activation
from planish.codegen.tiles.float import FloatTile
from planish.ir.ops.linear import QuantizeActivation as QuantizeActivationOp
from planish.targets.host.float_tiles import FLOAT_TILES
from planish.testing.float_kernels import by_tile, compile_kernel


@cache
def compiled(config: QuantizeActivation) -> Any:
    return compile_kernel(quantize_activation(config), config.tile)


def apply(tile: FloatTile, x: torch.Tensor, largest: int = 127) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = torch.full(x.shape, 99, dtype=torch.int8), torch.full((x.shape[0], 1), float("nan"))
    compiled(QuantizeActivation(x.shape[1], tile, largest))(x, codes, scale)
    return codes, scale


@by_tile
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 9),
    features=st.sampled_from([1, 5, 8, 16, 37, 64]),
    exponent=st.integers(-45, 38),
    seed=st.integers(0, 2**31),
    bits=st.sampled_from([2, 4, 8]),
)
def test_bits_are_those_of_the_op(
    tile: FloatTile, rows: int, features: int, exponent: int, seed: int, bits: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator).clamp(-3, 3) * 10.0**exponent
    x[torch.rand(rows, generator=generator) < 0.2] = 0
    op = QuantizeActivationOp(bits)
    for result, wanted in zip(apply(tile, x, op.largest), op.evaluate(x), strict=True):
        assert torch.equal(result, wanted)


@by_tile
def test_halves_round_to_even(tile: FloatTile) -> None:
    halves = torch.arange(-126.5, 127)
    x = torch.cat((torch.tensor([127.0]), halves))[None]
    codes, scale = apply(tile, x)
    assert scale.item() == 1
    assert codes[0, 1:].tolist() == [round(half) for half in halves.tolist()]


@by_tile
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 9, 36])
def test_what_is_not_finite_stays_in_the_scale(tile: FloatTile, bad: float, at: int) -> None:
    x = torch.randn(3, 37, generator=torch.Generator().manual_seed(1))
    clean, clean_scale = apply(tile, x.clone())
    x[1, at] = bad
    codes, scale = apply(tile, x)
    assert torch.equal(codes[::2], clean[::2]) and torch.equal(scale[::2], clean_scale[::2])
    assert not codes[1].any() and not torch.isfinite(scale[1]).any()
    assert torch.isnan(codes[1].float() * scale[1]).all()


@by_tile
def test_rows_on_several_threads_have_the_same_bits(tile: FloatTile) -> None:
    features = 517
    rows = PARALLEL_ELEMENTS // features + 3
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(2))
    codes, scale = apply(tile, x)
    for row in (0, rows // 2, rows - 1):
        one_codes, one_scale = apply(tile, x[row : row + 1].clone())
        assert torch.equal(one_codes[0], codes[row]) and torch.equal(one_scale[0], scale[row])


def test_rows_without_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        QuantizeActivation(0, FLOAT_TILES[0])


@pytest.mark.parametrize("largest", [0, 128])
def test_codes_of_more_than_a_byte_are_refused(largest: int) -> None:
    with pytest.raises(ValueError, match=f"a largest code of {largest} is not supported: it is from 1 to 127"):
        QuantizeActivation(8, FLOAT_TILES[0], largest)
