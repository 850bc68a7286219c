"""The promises of a float tile: one rounding in fma, exact widening, and masked accesses that touch nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import STORAGE_DTYPES, FloatTile
from planish.testing.float_kernels import TILES, compile_kernel, fma, gaussian

by_tile = pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)


def run(tile: FloatTile, body: Any, *tensors: torch.Tensor) -> None:
    compile_kernel(emit.prim_func("probe", body), tile)(*tensors)


@by_tile
def test_fma_rounds_once(tile: FloatTile) -> None:
    count = 512 * tile.lanes

    def body() -> None:
        a, b, c = (emit.argument(name, (count,), "float32") for name in "abc")
        y = emit.argument("y", (count,), "float32")
        with emit.loop("i", count // tile.lanes) as i:
            values = (emit.load(buffer, [i * tile.lanes], tile.lanes) for buffer in (a, b, c))
            emit.store(y, [i * tile.lanes], tile.fma(*values), tile.lanes)

    a, b = gaussian(count, seed=1), gaussian(count, seed=2)
    c = -(a * b) * (1 + 2.0**-20 * gaussian(count, seed=3).sign())
    y = torch.empty(count)
    run(tile, body, a, b, c, y)
    assert torch.equal(y, torch.from_numpy(fma(a.numpy(), b.numpy(), c.numpy())))
    assert not torch.equal(y, a * b + c)


@by_tile
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_widening_keeps_every_value(tile: FloatTile, dtype: str) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    stored = bits if dtype == "bfloat16" else bits.view(torch.float16)

    def body() -> None:
        x = emit.argument("x", (2**16,), STORAGE_DTYPES[dtype])
        y = emit.argument("y", (2**16,), "float32")
        with emit.loop("i", 2**16 // tile.lanes) as i:
            value = tile.widen(emit.load(x, [i * tile.lanes], tile.lanes), dtype)
            emit.store(y, [i * tile.lanes], value, tile.lanes)

    y = torch.empty(2**16)
    run(tile, body, stored, y)
    expected = bits.view(getattr(torch, dtype)).to(torch.float32)
    assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))


@by_tile
def test_masked_accesses_touch_the_first_lanes_only(tile: FloatTile) -> None:
    lanes, counts = tile.lanes, range(-1, tile.lanes + 2)

    def body() -> None:
        x = emit.argument("x", (len(counts), lanes), "float32")
        y = emit.argument("y", (len(counts), lanes), "float32")
        z = emit.argument("z", (len(counts), lanes), "float32")
        with emit.loop("i", len(counts)) as i:
            count = T.cast(i, "int32") - 1
            emit.store(y, [i, 0], tile.load_first(T.address_of(x[i, 0]), count), lanes)
            tile.store_first(T.address_of(z[i, 0]), emit.load(x, [i, 0], lanes), count)

    x = gaussian(len(counts), lanes, seed=1)
    y, z = torch.full_like(x, 5), torch.full_like(x, 5)
    run(tile, body, x, y, z)
    inside = torch.from_numpy(np.arange(lanes)[None, :] < np.array(counts)[:, None])
    assert torch.equal(y, torch.where(inside, x, 0))
    assert torch.equal(z, torch.where(inside, x, 5))


@by_tile
def test_unknown_dtypes_are_refused(tile: FloatTile) -> None:
    with pytest.raises(ValueError, match="cannot widen int8: use one of float32, float16, bfloat16"):
        tile.widen(None, "int8")
