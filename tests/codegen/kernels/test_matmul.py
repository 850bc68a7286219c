"""Laws of the batched matrix product: exact on integers, and bits that are the chain of fused multiply-adds."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.matmul import Matmul, configurations, matmul
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, fma_chain, gaussian, small_integers, unaligned

by_transposed = pytest.mark.parametrize("transposed", [False, True], ids=["as-is", "transposed"])


@cache
def compiled(config: Matmul) -> Any:
    return compile_kernel(matmul(config), config.tile)


def apply(config: Matmul, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    y = torch.full((a.shape[0], a.shape[1], b.shape[2]), float("nan"))
    compiled(config)(a.contiguous(), (b.mT if config.transposed else b).contiguous(), y)
    return y


def symbolic(tile: FloatTile, transposed: bool) -> Matmul:
    """Every size symbolic, and cut so small that a few dozen steps pass through every loop and remainder."""
    return Matmul(None, None, None, None, transposed, tile, 5, 2, 16, task_panels=2, task_tiles=2)


@by_tile
@by_transposed
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 40), st.integers(1, 90)),
    seed=st.integers(0, 2**31),
)
def test_exact_on_integers(tile: FloatTile, transposed: bool, sizes: tuple[int, int, int, int], seed: int) -> None:
    batch, rows, depth, columns = sizes
    a = small_integers(batch, rows, depth, seed=seed)
    b = small_integers(batch, depth, columns, seed=seed + 1)
    assert torch.equal(apply(symbolic(tile, transposed), a, b).double(), a.double() @ b.double())


@by_tile
@by_transposed
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 25), depth=st.integers(1, 40), columns=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_every_element_is_the_chain(
    tile: FloatTile, transposed: bool, rows: int, depth: int, columns: int, seed: int
) -> None:
    a, b = gaussian(2, rows, depth, seed=seed), gaussian(2, depth, columns, seed=seed + 1)
    expected = torch.stack([fma_chain(x, w.T) for x, w in zip(a, b)])
    assert torch.equal(apply(symbolic(tile, transposed), a, b), expected)


@by_tile
def test_known_sizes_keep_the_bits(tile: FloatTile) -> None:
    a, b = gaussian(3, 19, 300, seed=1), gaussian(3, 300, 64, seed=2)
    expected = torch.stack([fma_chain(x, w.T) for x, w in zip(a, b)])
    candidates = configurations(tile, 3, None, 300, 64)
    assert len(set(candidates)) == len(candidates)
    for config in candidates[:: len(candidates) // 2]:
        assert torch.equal(apply(config, a, b), expected)
        assert torch.equal(apply(config, a[:, :1], b), expected[:, :1])


@by_tile
@pytest.mark.parametrize("rows", [1, 40])
def test_tensors_may_lie_anywhere(tile: FloatTile, rows: int) -> None:
    config = Matmul(1, None, 30, 4 * tile.lanes, False, tile, 5, 2)
    a, b = small_integers(1, rows, 30, seed=1), small_integers(1, 30, 4 * tile.lanes, seed=2)
    y = unaligned(torch.empty(1, rows, 4 * tile.lanes))
    compiled(config)(unaligned(a), unaligned(b), y)
    assert torch.equal(y.double(), a.double() @ b.double())


@by_tile
@by_transposed
@pytest.mark.full
def test_configurations_are_exact(tile: FloatTile, transposed: bool) -> None:
    a, b = small_integers(2, 45, 600, seed=1), small_integers(2, 600, 100, seed=2)
    known = configurations(tile, 2, None, 600, 100, transposed)
    for config in known[::4] + configurations(tile, None, None, None, None, transposed)[::4]:
        assert torch.equal(apply(config, a, b).double(), a.double() @ b.double())


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Matmul(1, 0, 1, 1, False, TILES[0], 4, 2)
    with pytest.raises(ValueError, match="registers"):
        Matmul(1, 1, 1, 1, False, TILES[0], 40, 2)
