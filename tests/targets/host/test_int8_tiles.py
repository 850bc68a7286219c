"""The 8-bit tiles: exact for every weight of a byte, and a refusal of what is no byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.tirx.script import builder as T

from planish.codegen.kernel_passes import compile_kernels
from planish.codegen.kernels import emit
from planish.codegen.tiles.int8 import Int8Tile
from planish.targets.host.detect import detect_host
from planish.targets.host.int8_tiles import INT8_TILES

STEPS = 5
KERNELS: dict[tuple[str, int], Any] = {}


def compiled(tile: Int8Tile, weight_bound: int) -> Any:
    """``sums (lanes,) += STEPS steps of weights (STEPS, lanes * depth) and activations of the same shape``."""
    if (tile.name, weight_bound) not in KERNELS:
        size = tile.lanes * tile.depth

        def body() -> None:
            weights = emit.argument("weights", (STEPS, size), "uint8")
            activations = emit.argument("activations", (STEPS, size), "int8")
            sums = emit.argument("sums", (tile.lanes,), "int32")
            accumulator = tile.accumulator(emit.load(sums, [0], tile.lanes), weight_bound)
            for step in range(STEPS):
                accumulator.add(emit.load(weights, [step, 0], size), emit.load(activations, [step, 0], size))
            emit.store(sums, [T.int64(0)], accumulator.value(), tile.lanes)

        target = detect_host().restricted_to(tile.features).tvm_target()
        KERNELS[tile.name, weight_bound] = compile_kernels(emit.prim_func("dots", body), target)["dots"]
    return KERNELS[tile.name, weight_bound]


@pytest.mark.parametrize("tile", detect_host().tiles(INT8_TILES), ids=lambda tile: tile.name)
@pytest.mark.parametrize("weight_bound", [15, 60, 127, 128, 255])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), extreme=st.booleans())
def test_sums_are_exact(tile: Int8Tile, weight_bound: int, seed: int, extreme: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (STEPS, tile.lanes * tile.depth)
    weights = torch.randint(0, weight_bound + 1, shape, generator=generator, dtype=torch.uint8)
    activations = torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
    if extreme:
        weights.fill_(weight_bound)
        activations = torch.where(activations < 0, -127, 127).to(torch.int8)[:, :1].expand(shape).contiguous()
    start = torch.randint(-(2**20), 2**20, (tile.lanes,), generator=generator, dtype=torch.int32)
    sums = start.clone()
    compiled(tile, weight_bound)(weights, activations, sums)
    products = (weights.int() * activations.int()).unflatten(-1, (tile.lanes, tile.depth))
    assert torch.equal(sums, start + products.sum((0, 2), dtype=torch.int32))


@pytest.mark.parametrize("tile", INT8_TILES, ids=lambda tile: tile.name)
def test_weights_beyond_a_byte_are_refused(tile: Int8Tile) -> None:
    with pytest.raises(ValueError, match="weights from 0 to 255, not of 256"):
        tile.accumulator(T.broadcast(T.int32(0), tile.lanes), 256)
