"""Laws of the 4-bit linear kernel: its bits are those of the stated arithmetic, whatever the tile, the cut or the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels.linear_int4 import linear_int4
from planish.codegen.kernels.linear_int4_config import LinearInt4, configurations, pack_weight
from planish.codegen.kernels.linear_int4_packing import Int4Layout
from planish.codegen.tiles.int8 import DotAccumulator, Int8Tile
from planish.targets.host.detect import detect_host
from planish.targets.host.int8_tiles import INT8_TILES
from planish.testing.float_kernels import fma


@dataclass(frozen=True)
class PairsTile(Int8Tile):
    """A tile that multiplies pairs of rows, as other machines do, made of one that multiplies one at a time."""

    inner: Int8Tile

    def accumulator(self, initial: Any, weight_bound: int) -> DotAccumulator:
        return self.inner.accumulator(initial, weight_bound)

    @property
    def multiplies_pairs(self) -> bool:
        return True

    def add_pairs(self, sums: Any, activations: Any, weights: Any) -> Any:
        lanes, half = self.lanes, self.lanes // 2
        # Twice as deep as a dot product: each column has two lanes.
        words = T.bind(T.reinterpret(f"int{8 * self.depth}x4", activations))
        of_rows = []
        for row in range(2):
            spread = tirx.Shuffle([words] * (lanes // 4), [T.int32(2 * row + lane % 2) for lane in range(lanes)])
            dots = self.inner.accumulator(T.broadcast(T.int32(0), lanes), 15)
            dots.add(weights, T.bind(T.reinterpret(f"int8x{lanes * self.depth}", spread)))
            of_rows.append(T.bind(dots.value()))
        even, odd = (
            tirx.Shuffle(
                of_rows, [T.int32(row * lanes + 2 * column + side) for row in range(2) for column in range(half)]
            )
            for side in range(2)
        )
        return T.bind(sums + even + odd)


DOTS = detect_host().tiles(INT8_TILES)
PAIRS = [PairsTile("pairs", tile.depth, tile.floats, tile.features, tile) for tile in DOTS[-1:]]
TILES = [*DOTS, *PAIRS]
by_tile = pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)

# group, groups, scale dtype, bias, columns beyond whole panels
PROBLEMS = [
    (32, 3, "float16", True, 5),
    (64, 2, "bfloat16", False, 0),
    (128, 2, "float32", True, -7),
    (24, 1, "float16", False, 1),
]
by_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p)))


def config_of(tile: Int8Tile, problem: tuple[int, int, str, bool, int], **changes: Any) -> LinearInt4:
    """A kernel cut so small that a dozen rows and a few panels pass through every loop and every remainder."""
    group, groups, scale_dtype, bias, beyond = problem
    config = LinearInt4(
        group * groups, 6 * tile.lanes + beyond, group, scale_dtype, bias, tile, rows=3, vectors=2, prefetch=512, many=4
    )
    return replace(config, **changes)


@cache
def compiled(config: LinearInt4) -> Any:
    target = detect_host().restricted_to(config.tile.features).tvm_target()
    return tvm.compile(linear_int4(config), target=target)["linear_int4"]


@dataclass
class Layer:
    """A weight as stored and as integers, with what else the kernel of one layer takes."""

    q: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    @staticmethod
    def draw(config: LinearInt4, seed: int) -> Layer:
        generator = torch.Generator().manual_seed(seed)
        shape = (config.out_features, config.in_features)
        q = torch.randint(-8, 8, shape, generator=generator)
        scales = torch.randn(shape[0], shape[1] // config.group, generator=generator)
        bias = torch.randn(shape[0], generator=generator) if config.bias else None
        return Layer.of(config, q, scales, bias)

    @staticmethod
    def of(config: LinearInt4, q: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> Layer:
        codes = (q + 8).to(torch.uint8)
        return Layer(q, codes[:, 0::2] | codes[:, 1::2] << 4, scales.to(getattr(torch, config.scale_dtype)), bias)


def activations(config: LinearInt4, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (rows, config.in_features), generator=generator).to(torch.int8)
    return codes, torch.rand(rows, 1, generator=generator) + 0.01


def apply(config: LinearInt4, layer: Layer, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    y = torch.full((codes.shape[0], config.out_features), float("nan"))
    packed = pack_weight(config, layer.values, layer.scales)
    compiled(config)(codes.clone(), scale.clone(), packed, *([] if layer.bias is None else [layer.bias]), y)
    return y


def dots(config: LinearInt4, layer: Layer, codes: torch.Tensor) -> np.ndarray:
    """The exact integers, (groups, rows, columns)."""
    x = codes.long().unflatten(-1, (-1, config.group)).transpose(0, 1)
    return (x @ layer.q.long().unflatten(-1, (-1, config.group)).permute(1, 2, 0)).numpy()


def model(config: LinearInt4, layer: Layer, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The arithmetic that the kernel's module states, step by step."""
    w_scale, x_scale = layer.scales.float().numpy(), scale.numpy()
    t = np.zeros((codes.shape[0], config.out_features), np.float32)
    for group, dot in enumerate(dots(config, layer, codes)):
        assert np.all(dot == dot.astype(np.float32))
        t = fma(dot.astype(np.float32), w_scale[None, :, group], t)
    y = t * x_scale if layer.bias is None else fma(t, x_scale, layer.bias.numpy()[None])
    return torch.from_numpy(y)


@by_tile
@by_problem
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 14), seed=st.integers(0, 2**31))
def test_bits_are_those_of_the_stated_arithmetic(tile: Int8Tile, problem: Any, rows: int, seed: int) -> None:
    config = config_of(tile, problem)
    layer = Layer.draw(config, seed)
    x = activations(config, rows, seed + 1)
    assert torch.equal(apply(config, layer, *x), model(config, layer, *x))


@by_tile
@by_problem
@pytest.mark.parametrize("q", [-8, 7])
@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_saturates(tile: Int8Tile, problem: Any, q: int, sign: int) -> None:
    config = config_of(tile, problem)
    ones = torch.ones(config.out_features, config.in_features // config.group)
    bias = torch.zeros(config.out_features) if config.bias else None
    layer = Layer.of(config, torch.full((config.out_features, config.in_features), q), ones, bias)
    codes = torch.full((4, config.in_features), sign * 127, dtype=torch.int8)
    y = apply(config, layer, codes, torch.ones(4, 1))
    assert torch.equal(y, torch.full_like(y, sign * 127.0 * q * config.in_features))


@by_tile
@by_problem
@settings(max_examples=10, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(
    tile: Int8Tile, problem: Any, data: st.DataObject, seed: int
) -> None:
    config = config_of(tile, problem)
    layer = Layer.draw(config, seed)
    codes, scale = activations(config, 14, seed + 1)
    whole = apply(config, layer, codes, scale)
    rows = data.draw(st.integers(1, 13))
    start = data.draw(st.integers(0, 14 - rows))
    part = slice(start, start + rows)
    assert torch.equal(apply(config, layer, codes[part], scale[part]), whole[part])


@by_tile
def test_bits_do_not_depend_on_the_configuration(tile: Int8Tile) -> None:
    candidates = configurations(tile, 128, 3 * tile.lanes + 1, 64, "float16", True)
    assert len(set(candidates)) == len(candidates)
    layer = Layer.draw(candidates[0], 1)
    x = activations(candidates[0], 9, 2)
    expected = model(candidates[0], layer, *x)
    for config in candidates[:: len(candidates) - 1]:
        assert torch.equal(apply(config, layer, *x), expected)


@pytest.mark.full
@by_tile
@by_problem
def test_every_register_tile_at_every_number_of_rows(tile: Int8Tile, problem: Any) -> None:
    group, groups, scale_dtype, bias, beyond = problem
    # One of each shape of register tile: what else varies is not worth its compilation.
    candidates = configurations(tile, group * groups, 6 * tile.lanes + beyond, group, scale_dtype, bias)
    for config in {(config.rows, config.vectors): config for config in candidates}.values():
        layer = Layer.draw(config, 3)
        codes, scale = activations(config, 26, 4)
        expected = model(config, layer, codes, scale)
        for rows in range(1, 27):
            assert torch.equal(apply(config, layer, codes[:rows], scale[:rows]), expected[:rows])


@by_tile
@by_problem
def test_within_the_bound_of_float64(tile: Int8Tile, problem: Any) -> None:
    config = config_of(tile, problem)
    layer = Layer.draw(config, 5)
    codes, scale = activations(config, 7, 6)
    terms = dots(config, layer, codes) * layer.scales.double().numpy().T[:, None, :] * scale.double().numpy()
    bias = np.zeros(1) if layer.bias is None else layer.bias.double().numpy()
    # One rounding per group, then at most two more: the terms are exact but for float64's own error, 2**29 times less.
    n, u = terms.shape[0] + 2, 2.0**-24 + 2.0**-52
    gamma = n * u / (1 - n * u)
    error = np.abs(apply(config, layer, codes, scale).double().numpy() - (terms.sum(0) + bias))
    assert np.all(error <= gamma * (np.abs(terms).sum(0) + np.abs(bias)))


@by_tile
def test_tensors_may_lie_anywhere(tile: Int8Tile) -> None:
    config = config_of(tile, PROBLEMS[1])
    layer = Layer.draw(config, 10)
    codes, scale = activations(config, 5, 11)

    def displaced(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view(tensor.shape)

    y = displaced(torch.empty(5, config.out_features))
    packed = displaced(pack_weight(config, layer.values, layer.scales))
    compiled(config)(displaced(codes), displaced(scale), packed, y)
    assert torch.equal(y, model(config, layer, codes, scale))


@by_tile
def test_one_column(tile: Int8Tile) -> None:
    config = config_of(tile, (32, 1, "float32", True, 0), out_features=1)
    layer = Layer.draw(config, 7)
    x = activations(config, 5, 8)
    assert torch.equal(apply(config, layer, *x), model(config, layer, *x))


@pytest.mark.parametrize("scale_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("lanes, depth, vectors, group", [(4, 4, 2, 16), (2, 8, 1, 32), (3, 2, 3, 4)])
def test_packed_weight_is_laid_out_as_documented(
    lanes: int, depth: int, vectors: int, group: int, scale_dtype: str
) -> None:
    layout = Int4Layout(group, lanes, depth, vectors, scale_dtype)
    columns, groups = layout.columns, 2
    rows = columns + 1
    generator = torch.Generator().manual_seed(9)
    codes = torch.randint(0, 16, (rows, group * groups), generator=generator, dtype=torch.uint8)
    scales = torch.randn(rows, groups, generator=generator).to(getattr(torch, scale_dtype))
    packed = layout.pack(codes[:, 0::2] | codes[:, 1::2] << 4, scales)
    assert tuple(packed.shape) == layout.packed_shape(rows, group * groups) == (2 * groups, layout.block_bytes)
    for block in range(2 * groups):
        values = iter(packed[block].tolist())
        for step in range(group // (2 * depth)):
            for column in range(columns):
                for byte in range(depth):
                    n, k = block // groups * columns + column, block % groups * group + 2 * depth * step + byte
                    low, high = (codes[n, k].item(), codes[n, k + depth].item()) if n < rows else (8, 8)
                    assert next(values) == low | high << 4
        stored = torch.tensor(list(values), dtype=torch.uint8).view(scales.dtype)
        mine = scales[block // groups * columns :, block % groups][:columns]
        assert torch.equal(stored, torch.nn.functional.pad(mine, (0, columns - len(mine))))


def test_refusals() -> None:
    tile = TILES[0]
    with pytest.raises(ValueError, match="group of 32 does not divide the 80 input features"):
        LinearInt4(80, 8, 32, "float16", False, tile, 1, 1)
    with pytest.raises(ValueError, match="scales of int8"):
        LinearInt4(64, 8, 32, "int8", False, tile, 1, 1)
    with pytest.raises(ValueError, match="cannot be cut into steps of 8 elements"):
        LinearInt4(60, 8, 12, "float16", False, tile, 1, 1)
    with pytest.raises(ValueError, match="dot products of 3 elements"):
        Int4Layout(48, 4, 3, 1, "float16")
    with pytest.raises(ValueError, match="at least 1"):
        LinearInt4(64, 8, 32, "float16", False, tile, 0, 1)
    with pytest.raises(ValueError, match="at most 4128"):
        LinearInt4(8192, 8, 8192, "float16", False, tile, 1, 1)
    config = LinearInt4(64, 8, 32, "float16", False, tile, 1, 1)
    values, scales = torch.zeros(8, 32, dtype=torch.uint8), torch.zeros(8, 2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"values of shape \(8, 32\), not \(9, 32\)"):
        pack_weight(config, torch.zeros(9, 32, dtype=torch.uint8), scales)
    with pytest.raises(ValueError, match="must be uint8"):
        pack_weight(config, values.to(torch.int8), scales)
    with pytest.raises(ValueError, match=r"must be float16 of shape \(8, 2\), not torch.float32"):
        pack_weight(config, values, scales.float())
