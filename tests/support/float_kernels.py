"""Support for the tests of float kernels: the tiles this machine can run, compilation for them, and exact oracles."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from planish.codegen.kernel_passes import compile_kernels
from planish.codegen.tiles.float import FloatTile
from planish.targets.host.detect import detect_host
from planish.targets.host.float_tiles import FLOAT_TILES

TILES: list[FloatTile] = detect_host().tiles(FLOAT_TILES)
"""Every float tile that runs here."""
by_tile = pytest.mark.parametrize(
    "tile", [TILES[0], *(pytest.param(t, marks=pytest.mark.full) for t in TILES[1:])], ids=lambda tile: tile.name
)
"""Each of them. A kernel takes a second to compile: all but the widest wait for the full tier."""


@cache
def _target(tile: FloatTile) -> Any:
    return detect_host().restricted_to(tile.features).tvm_target()


def compile_kernel(function: Any, tile: FloatTile) -> Any:
    """``function`` compiled for a processor with nothing beyond what ``tile`` needs: call it with torch tensors."""
    return compile_kernels(function, _target(tile))[function.attrs["global_symbol"]]


def small_integers(*shape: int, seed: int, largest: int = 4) -> torch.Tensor:
    """float32 integers in [-largest, largest]: sums of fewer than 2**24 / largest**2 products are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).to(torch.float32)


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal float32 values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of ``tensor`` whose address no vector would choose."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return memory.copy_(tensor)


def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` on float32 arrays, rounded once to the nearest even.

    The product is exact in float64. The sum is rounded to odd there, after which the rounding to float32 is that of
    the exact sum (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding
    to odd", 2008). Holds as long as no value is subnormal or infinite.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even, np.nextafter(total, towards), total).astype(np.float32)


def fma_chain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x`` (M, K) times ``weight`` (N, K) transposed: for each element the chain of fma over increasing k from 0."""
    a, b = x.numpy(), weight.to(torch.float32).numpy()
    result = np.zeros((a.shape[0], b.shape[0]), np.float32)
    for k in range(a.shape[1]):
        result = fma(a[:, k, None], b[None, :, k], result)
    return torch.from_numpy(result)
