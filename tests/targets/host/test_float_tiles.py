"""The promises of a float tile: one rounding in fma, exact widening, and masked accesses that touch nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import E4M3, STORAGE_DTYPES, FloatTile
from planish.targets.arm.float_tiles import NEON
from planish.testing.float_kernels import by_tile, compile_kernel, fma, gaussian


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
def test_lookup_takes_places_by_their_lowest_bits(tile: FloatTile) -> None:
    count = 4 * tile.lanes

    def body() -> None:
        places, table = emit.argument("places", (count,), "int32"), emit.argument("table", (tile.entries,), "float32")
        y = emit.argument("y", (count,), "float32")
        with emit.loop("i", count // tile.lanes) as i:
            found = tile.lookup(emit.load(table, [0], tile.entries), emit.load(places, [i * tile.lanes], tile.lanes))
            emit.store(y, [i * tile.lanes], found, tile.lanes)

    places = torch.randint(-(2**31), 2**31 - 1, (count,), generator=torch.Generator().manual_seed(4)).to(torch.int32)
    table, y = gaussian(tile.entries, seed=5), torch.empty(count)
    run(tile, body, places, table, y)
    assert torch.equal(y, table[(places % tile.entries).long()])


def test_a_tile_without_tables_says_so() -> None:
    with pytest.raises(ValueError, match="neon looks nothing up in a table"):
        NEON.lookup(T.float32(0), T.int32(0))


@by_tile
def test_eight_bit_floats_keep_their_value(tile: FloatTile) -> None:
    def body() -> None:
        x, y = emit.argument("x", (256,), "uint8"), emit.argument("y", (256,), "float32")
        with emit.loop("i", 256 // tile.lanes) as i:
            emit.store(y, [i * tile.lanes], tile.widen(emit.load(x, [i * tile.lanes], tile.lanes), E4M3), tile.lanes)

    bits, y = torch.arange(256).to(torch.uint8), torch.empty(256)
    run(tile, body, bits, y)
    numbers = bits & 0x7F != 0x7F
    assert torch.equal(y[numbers], bits.view(torch.float8_e4m3fn).float()[numbers])


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
