"""The loops that measure a machine do all of the work that is counted: their results say so exactly."""

from __future__ import annotations

import pytest
import torch

from planish.codegen.kernel_passes import compile_kernels
from planish.codegen.kernels import peaks
from planish.codegen.tiles.float import FloatTile
from planish.codegen.tiles.int8 import Int8Tile
from planish.targets.host.detect import detect_host
from planish.targets.host.int8_tiles import INT8_TILES
from planish.testing.float_kernels import TILES, compile_kernel


@pytest.mark.parametrize("way", peaks.READS)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_every_element_is_read_once(tile: FloatTile, way: str) -> None:
    elements = 3 * peaks.READS[way][0] * tile.lanes
    source = torch.randint(-9, 10, (elements,), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    assert peaks.read_tasks(tile.lanes, elements, way) == 3
    sums = torch.full((3, tile.lanes), -1, dtype=torch.int32)
    compile_kernel(peaks.reading(tile.lanes, elements, way), tile)(source, sums)
    assert torch.equal(sums, source.view(3, -1, tile.lanes).sum(1).to(torch.int32))


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_every_product_is_added(tile: FloatTile) -> None:
    """y * 2 + 2 from y = 0, seven times, is 2^8 - 2."""
    x, y = torch.full((tile.lanes,), 2.0), torch.zeros(3, peaks.chains(tile), tile.lanes)
    compile_kernel(peaks.multiplying(tile, 3, 7), tile)(x, y)
    assert torch.equal(y, torch.full_like(y, 2.0**8 - 2))


@pytest.mark.parametrize("tile", detect_host().tiles(INT8_TILES), ids=lambda tile: tile.name)
def test_every_product_of_bytes_is_summed(tile: Int8Tile) -> None:
    generator = torch.Generator().manual_seed(2)
    count, width = peaks.chains(tile.floats), tile.lanes * tile.depth
    weights = torch.randint(0, 8, (5, width), generator=generator).to(torch.uint8)
    activations = torch.randint(-127, 128, (count, width), generator=generator).to(torch.int8)
    y = torch.ones(2, count, tile.lanes, dtype=torch.int32)
    target = detect_host().restricted_to(tile.features).tvm_target()
    kernel = compile_kernels(peaks.summing_products(tile, 2, 5, 3), target)["summing_products"]
    kernel(weights, activations, y)
    products = (weights.long().sum(0) * activations.long()).view(count, tile.lanes, tile.depth).sum(-1)
    assert torch.equal(y.long(), (1 + 3 * products).expand(2, -1, -1))
