"""Laws of the convolution kernel: exact on integers for every geometry, and bits that are the chain, always."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.conv2d import Conv2d, configurations, conv2d, pack_weight
from planish.codegen.kernels.conv2d_geometry import ConvGeometry
from planish.codegen.kernels.conv2d_packing import pack_filters, unpack_filters
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, fma_chain, gaussian, small_integers, unaligned


@cache
def compiled(config: Conv2d) -> Any:
    return compile_kernel(conv2d(config), config.tile)


def weight_shape(config: Conv2d) -> tuple[int, ...]:
    return config.out_channels, config.group_inputs, *config.geometry.kernel


def apply(config: Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = torch.full((x.shape[0], config.out_channels, *config.geometry.out), float("nan"))
    compiled(config)(x, pack_weight(config, weight), *([] if bias is None else [bias]), y)
    return y


def by_torch(config: Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    geometry = config.geometry
    wide = None if bias is None else bias.double()
    places = (geometry.stride, geometry.padding, geometry.dilation, config.groups)
    return functional.conv2d(x.double(), weight.double(), wide, *places)


def by_chain(config: Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The definition of the bits: gather the patches, then one chain of fused multiply-adds an element."""
    geometry = config.geometry
    patches = functional.unfold(x, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    results = []
    for image in patches.reshape(x.shape[0], config.groups, config.depth, -1):
        parts = zip(image, weight.reshape(config.groups, config.group_outputs, config.depth))
        results.append(torch.cat([fma_chain(patch.T, filters).T for patch, filters in parts]))
    y = torch.stack(results).reshape(x.shape[0], config.out_channels, *geometry.out)
    return y if bias is None else y + bias[:, None, None]


def small(tile: FloatTile, inputs: int, outputs: int, groups: int, geometry: ConvGeometry, bias: bool) -> Conv2d:
    """Cut so small that little images pass through every loop and every remainder."""
    return Conv2d(inputs, outputs, groups, geometry, bias, tile, 3, 2, channel_block=2, task_panels=2, task_tiles=2)


@st.composite
def geometries(draw: st.DrawFn) -> ConvGeometry:
    pairs = [(draw(st.integers(1, most)), draw(st.integers(1, most))) for most in (4, 3, 3)]
    kernel, stride, dilation = pairs
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    reach = [dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d] for d in (0, 1)]
    image = tuple(max(1, least) + draw(st.integers(0, 12)) for least in reach)
    return ConvGeometry((image[0], image[1]), kernel, stride, padding, dilation)


def check_geometry(tile: FloatTile, geometry: ConvGeometry, sizes: tuple[int, int, int], bias: bool, seed: int) -> None:
    groups, inputs, outputs = sizes
    config = small(tile, groups * inputs, groups * outputs, groups, geometry, bias)
    x = small_integers(2, config.in_channels, *geometry.image, seed=seed)
    weight = small_integers(*weight_shape(config), seed=seed + 1)
    b = small_integers(config.out_channels, seed=seed + 2) if bias else None
    assert torch.equal(apply(config, x, weight, b).double(), by_torch(config, x, weight, b))


sizes_of_groups = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 8))


@by_tile
@settings(max_examples=8, deadline=None)
@given(geometry=geometries(), sizes=sizes_of_groups, bias=st.booleans(), seed=st.integers(0, 2**31))
def test_exact_on_integers(
    tile: FloatTile, geometry: ConvGeometry, sizes: tuple[int, int, int], bias: bool, seed: int
) -> None:
    check_geometry(tile, geometry, sizes, bias, seed)


@by_tile
@pytest.mark.full
@settings(max_examples=25, deadline=None)
@given(geometry=geometries(), sizes=sizes_of_groups, bias=st.booleans(), seed=st.integers(0, 2**31))
def test_exact_on_integers_at_length(
    tile: FloatTile, geometry: ConvGeometry, sizes: tuple[int, int, int], bias: bool, seed: int
) -> None:
    check_geometry(tile, geometry, sizes, bias, seed)


LAYERS = {
    "stem": (3, 10, 1, ConvGeometry((31, 30), (7, 7), (2, 2), (3, 3))),
    "three": (9, 14, 1, ConvGeometry((9, 11), (3, 3), (1, 1), (1, 1))),
    "valid": (9, 14, 1, ConvGeometry((9, 11), (3, 3))),
    "pointwise": (17, 13, 1, ConvGeometry((7, 7), (1, 1))),
    "shortcut": (17, 13, 1, ConvGeometry((9, 8), (1, 1), (2, 2))),
    "depthwise": (7, 7, 7, ConvGeometry((13, 9), (3, 3), (2, 2), (1, 1))),
    "multiplied": (4, 12, 4, ConvGeometry((8, 9), (3, 5), (1, 1), (1, 2))),
    "dilated": (4, 6, 2, ConvGeometry((16, 15), (3, 3), (3, 2), (2, 4), (2, 3))),
    "patches": (3, 9, 1, ConvGeometry((20, 15), (5, 5), (5, 5))),
    "one-dimensional": (6, 9, 1, ConvGeometry((1, 70), (1, 10), (1, 5))),
}


@by_tile
@pytest.mark.parametrize("layer", LAYERS)
def test_every_element_is_the_chain_whatever_the_batch(tile: FloatTile, layer: str) -> None:
    config = small(tile, *LAYERS[layer], True)
    x, weight = gaussian(3, config.in_channels, *config.geometry.image, seed=1), gaussian(*weight_shape(config), seed=2)
    bias = gaussian(config.out_channels, seed=3)
    expected = by_chain(config, x, weight, bias)
    for start, stop in ((0, 3), (0, 1), (1, 3)):
        assert torch.equal(apply(config, x[start:stop], weight, bias), expected[start:stop])


@by_tile
def test_bits_do_not_depend_on_the_configuration(tile: FloatTile) -> None:
    geometry = ConvGeometry((12, 13), (3, 3), (1, 1), (1, 1))
    candidates = configurations(tile, 96, 20, 1, geometry, False)
    assert len(set(candidates)) == len(candidates)
    x, weight = gaussian(1, 96, *geometry.image, seed=1), gaussian(20, 96, 3, 3, seed=2)
    expected = by_chain(candidates[0], x, weight, None)
    for config in candidates[:: max(1, len(candidates) // 3)]:
        assert torch.equal(apply(config, x, weight, None), expected)


@by_tile
@pytest.mark.parametrize("padding", [0, 1])
def test_tensors_may_lie_anywhere(tile: FloatTile, padding: int) -> None:
    config = small(tile, 4, 8, 1, ConvGeometry((8, 16), (1, 1), (1, 1), (padding, padding)), True)
    x, bias = small_integers(2, 4, 8, 16, seed=1), small_integers(8, seed=3)
    weight = small_integers(8, 4, 1, 1, seed=2)
    y = unaligned(torch.empty(2, 8, *config.geometry.out))
    compiled(config)(unaligned(x), unaligned(pack_weight(config, weight)), unaligned(bias), y)
    assert torch.equal(y.double(), by_torch(config, x, weight, bias))


@by_tile
@pytest.mark.full
@pytest.mark.parametrize("layer", ["stem", "three", "pointwise", "depthwise", "multiplied"])
def test_every_configuration_is_exact(tile: FloatTile, layer: str) -> None:
    for config in configurations(tile, *LAYERS[layer], False):
        x = small_integers(2, config.in_channels, *config.geometry.image, seed=1)
        weight = small_integers(*weight_shape(config), seed=2)
        assert torch.equal(apply(config, x, weight, None).double(), by_torch(config, x, weight, None))


@given(groups=st.integers(1, 4), channels=st.integers(1, 20), inputs=st.integers(1, 4), height=st.integers(1, 9))
def test_packing_keeps_every_bit(groups: int, channels: int, inputs: int, height: int) -> None:
    weight = gaussian(groups * channels, inputs, 2, 3, seed=channels)
    packed = pack_filters(weight, groups, height)
    assert packed.shape == (weight.numel(),)
    assert torch.equal(unpack_filters(packed, weight.shape, groups, height), weight)


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="does not fit into its padded image"):
        ConvGeometry((4, 4), (5, 5))
    with pytest.raises(ValueError, match="sizes of at least 1"):
        ConvGeometry((4, 4), (3, 3), stride=(0, 1))
    config = small(TILES[0], 6, 8, 2, ConvGeometry((4, 4), (3, 3)), False)
    with pytest.raises(ValueError, match="2 groups do not divide 6 input and 9 output"):
        replace(config, out_channels=9)
    with pytest.raises(ValueError, match="at least 1"):
        replace(config, task_tiles=0)
    with pytest.raises(ValueError, match=r"weight of shape \(8, 3, 3, 3\), not \(8, 6, 3, 3\)"):
        pack_weight(config, torch.zeros(8, 6, 3, 3))
    with pytest.raises(ValueError, match="takes float32"):
        pack_filters(torch.zeros(8, 3, 3, 3, dtype=torch.float64), 1, 4)
