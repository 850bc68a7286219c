"""Laws of the dense linear kernel: exact on integers, and bits that are the chain of fused multiply-adds, always."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.linear_dense import LinearDense, configurations, linear_dense, pack_weight
from planish.codegen.kernels.linear_dense_packing import pack_panels, unpack_panels
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, fma_chain, gaussian, small_integers, unaligned

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def config_of(tile: FloatTile, out_features: int, dtype: str = "float32", **changes: Any) -> LinearDense:
    """A kernel cut so small that a few dozen rows, steps and columns pass through every loop and every remainder."""
    rows, vectors = (5, 2) if tile.registers >= 32 else (4, 2)
    config = LinearDense(43, out_features, dtype, True, tile, rows, vectors, 2, 16, task_panels=2, task_tiles=2)
    return replace(config, **changes)


@cache
def compiled(config: LinearDense) -> Any:
    return compile_kernel(linear_dense(config), config.tile)


def apply(config: LinearDense, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = torch.full((x.shape[0], config.out_features), float("nan"))
    compiled(config)(x.contiguous(), pack_weight(config, weight), *([] if bias is None else [bias]), y)
    return y


@by_tile
@by_dtype
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 45), seed=st.integers(0, 2**31))
def test_exact_on_integers(tile: FloatTile, dtype: str, rows: int, seed: int) -> None:
    config = config_of(tile, 7 * tile.lanes + 3, dtype)
    x = small_integers(rows, 43, seed=seed)
    weight = small_integers(config.out_features, 43, seed=seed + 1).to(DTYPES[dtype])
    bias = small_integers(config.out_features, seed=seed + 2)
    expected = x.double() @ weight.double().T + bias.double()
    assert torch.equal(apply(config, x, weight, bias).double(), expected)


@by_tile
@by_dtype
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_every_element_is_the_chain(tile: FloatTile, dtype: str, rows: int, seed: int) -> None:
    config = config_of(tile, 7 * tile.lanes + 3, dtype)
    x, bias = gaussian(rows, 43, seed=seed), gaussian(config.out_features, seed=seed + 2)
    weight = gaussian(config.out_features, 43, seed=seed + 1).to(DTYPES[dtype])
    assert torch.equal(apply(config, x, weight, bias), fma_chain(x, weight) + bias)


@by_tile
@pytest.mark.parametrize("columns", ["one", "vector", "panel", "panels"])
def test_bits_do_not_depend_on_the_number_of_rows(tile: FloatTile, columns: str) -> None:
    out_features = {"one": 1, "vector": tile.lanes, "panel": 2 * tile.lanes, "panels": 8 * tile.lanes}[columns]
    config = config_of(tile, out_features, bias=False)
    x, weight = gaussian(37, 43, seed=3), gaussian(out_features, 43, seed=4)
    whole = apply(config, x, weight, None)
    for rows in (1, 2, 3, 4, 5, 6, 11, 26):
        for start in (0, 37 - rows):
            assert torch.equal(apply(config, x[start : start + rows], weight, None), whole[start : start + rows])


@by_tile
def test_bits_do_not_depend_on_the_configuration(tile: FloatTile) -> None:
    x, weight, bias = gaussian(50, 600, seed=5), gaussian(100, 600, seed=6), gaussian(100, seed=7)
    expected = fma_chain(x, weight) + bias
    candidates = configurations(tile, 600, 100, "float32", True)
    assert len(set(candidates)) == len(candidates)
    for config in candidates[:: len(candidates) // 2]:
        assert torch.equal(apply(config, x, weight, bias), expected)
        assert torch.equal(apply(config, x[:1], weight, bias), expected[:1])


@by_tile
@pytest.mark.parametrize("rows", [1, 7])
def test_tensors_may_lie_anywhere(tile: FloatTile, rows: int) -> None:
    config = config_of(tile, 4 * 2 * tile.lanes, "bfloat16")
    x, bias = small_integers(rows, 43, seed=1), small_integers(config.out_features, seed=3)
    weight = small_integers(config.out_features, 43, seed=2).to(torch.bfloat16)
    y = unaligned(torch.empty(rows, config.out_features))
    compiled(config)(unaligned(x), unaligned(pack_weight(config, weight)), unaligned(bias), y)
    assert torch.equal(y.double(), x.double() @ weight.double().T + bias.double())


@by_tile
@pytest.mark.full
def test_configurations_are_exact(tile: FloatTile) -> None:
    x, weight = small_integers(50, 600, seed=5), small_integers(100, 600, seed=6)
    for config in configurations(tile, 600, 100, "float32", False)[::2]:
        assert torch.equal(apply(config, x, weight, None).double(), x.double() @ weight.double().T)


@by_dtype
@given(rows=st.integers(1, 20), depth=st.integers(1, 9), width=st.integers(1, 8))
def test_packing_keeps_every_bit(dtype: str, rows: int, depth: int, width: int) -> None:
    weight = gaussian(rows, depth, seed=rows).to(DTYPES[dtype])
    packed = pack_panels(weight, width)
    assert packed.shape == (-(-rows // width), depth, width)
    assert torch.equal(unpack_panels(packed, rows), weight)


def test_refusals_name_what_is_wrong() -> None:
    tile = TILES[0]
    with pytest.raises(ValueError, match="no dense linear kernel for weights of int8"):
        config_of(tile, 8, "int8")
    with pytest.raises(ValueError, match="needs 1301 registers"):
        config_of(tile, 8, rows=99, vectors=13)
    with pytest.raises(ValueError, match="at least 1"):
        config_of(tile, 8, depth_block=0)
    with pytest.raises(ValueError, match=r"float32 weight of shape \(8, 43\), not float32 \(43, 8\)"):
        pack_weight(config_of(tile, 8), torch.zeros(43, 8))
    with pytest.raises(ValueError, match="3 dimensions"):
        pack_panels(torch.zeros(2, 2, 2), 8)
