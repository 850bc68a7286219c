"""Laws of the low-bit linear kernel: its bits are those of the stated arithmetic, whatever the tile, the cut or the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.tirx.script import builder as T

from planish.codegen.kernel_passes import compile_kernels
from planish.codegen.kernels.linear_low_bit import linear_low_bit
from planish.codegen.kernels.linear_low_bit_config import LowBitLinear, configurations, pack_weight
from planish.codegen.kernels.linear_low_bit_packing import LowBitLayout
from planish.codegen.tiles.int8 import Int8Tile
from planish.ir import Grouped, GroupedInt, Levels
from planish.targets.host.detect import detect_host
from planish.targets.host.int8_tiles import INT8_TILES
from planish.testing.float_kernels import fma
from planish.testing.int8_tiles import PairsTile, SignedTile

DOTS = detect_host().tiles(INT8_TILES)
PAIRS = [PairsTile("pairs", tile.depth, tile.floats, tile.features, tile) for tile in DOTS[-1:]]
TILES = [*DOTS, *PAIRS]
SIGNED = SignedTile("signed", DOTS[0].depth, DOTS[0].floats, DOTS[0].features, DOTS[0])
Problem = tuple[Grouped, int, bool, int]
"""Encoding, groups, bias, columns beyond whole panels."""
PROBLEMS: list[Problem] = [
    (GroupedInt(4, 32), 3, True, 5),
    (GroupedInt(4, 64, torch.bfloat16), 2, False, 0),
    (GroupedInt(4, 128, torch.float32), 2, True, -7),
    (GroupedInt(4, 24), 1, False, 1),
]
FEW = [Levels("sign", 32), Levels("ternary", 32), Levels("stretched", 64, torch.bfloat16)]
OTHERS: list[Problem] = [
    *((encoding, 2, False, 3) for encoding in FEW),
    *((GroupedInt(bits, 64), 2, bits % 2 == 0, bits - 4) for bits in (1, 2, 3, 5, 6, 7, 8)),
    *((GroupedInt(bits, 32, torch.float32, True), 3, True, 2) for bits in (2, 3, 4, 8)),
    # One group to a row, with sums beyond what float32 holds.
    (GroupedInt(8, 2048, torch.float32), 1, False, -5),
]
UNCUT: Problem = (GroupedInt(3, 64), 2, True, 3)
"""Codes of three bits, some of which are inserted where there is an instruction for it."""
BY_SIGNED: list[Problem] = [
    UNCUT,
    (GroupedInt(3, 32, torch.float32, True), 3, False, -2),
    *((encoding, 2, True, 1) for encoding in (GroupedInt(1, 32), GroupedInt(2, 96), GroupedInt(4, 32), *FEW[1:])),
]
QUICK = (DOTS[0], *PAIRS)
full, nightly = pytest.mark.full, pytest.mark.nightly


def _tier(tile: Int8Tile) -> Any:
    """The oldest and the widest tile and pairs are in the full tests, those between them in the nightly ones."""
    return full if tile in (*QUICK, DOTS[-1]) else nightly


def _marks(tile: Int8Tile, problem: Problem) -> Any:
    """Pairs with the other encodings are run by Arm's full tests, and here by the nightly ones."""
    if tile == SIGNED:
        return () if problem == UNCUT else full
    if problem in OTHERS:
        return nightly if tile in PAIRS else full
    return () if tile in QUICK else _tier(tile)


def _by(problems: Sequence[Problem], tiles: Sequence[Int8Tile]) -> list[Any]:
    """Tiles with problems that they sum exactly."""
    return [
        pytest.param(t, p, marks=_marks(t, p))
        for t in tiles
        for p in problems
        if p[0].grid.step * (p[0].grid.count - 1) <= t.weight_range[1]
    ]


def _named(part: Any) -> str:
    return part.name if isinstance(part, Int8Tile) else "-".join(map(str, part))


by_tile = pytest.mark.parametrize(
    "tile", [pytest.param(t, marks=() if t == DOTS[0] else _tier(t)) for t in TILES], ids=_named
)
by_problem = pytest.mark.parametrize("tile, problem", _by(PROBLEMS, TILES), ids=_named)
# Weights of a whole byte are what the tiles without their product sum in another way.
BYTES = [problem for problem in OTHERS if problem[0].grid.count == 256]
_ENCODINGS = _by(PROBLEMS, TILES) + _by(OTHERS, QUICK) + _by(BYTES, DOTS[-1:]) + _by(BY_SIGNED, [SIGNED])
by_encoding = pytest.mark.parametrize("tile, problem", _ENCODINGS, ids=_named)


def config_of(tile: Int8Tile, problem: Problem, **changes: Any) -> LowBitLinear:
    """A kernel cut so small that a dozen rows and a few panels pass through every loop and every remainder."""
    encoding, groups, bias, beyond = problem
    ins, outs = encoding.group * groups, 10 * tile.lanes + beyond
    # Two register tiles, or two bundles, to a panel.
    vectors = 4 if encoding.grid.count in (2, 8) else 2
    config = LowBitLinear(ins, outs, encoding, bias, tile, 3, vectors, prefetch=512, panel=3, many=4)
    return replace(config, **changes)


@cache
def compiled(config: LowBitLinear) -> Any:
    target = detect_host().restricted_to(config.tile.features).tvm_target()
    return compile_kernels(linear_low_bit(config), target)["linear_low_bit"]


@dataclass
class Layer:
    """A weight as stored and as integers, with the bias of its layer."""

    levels: torch.Tensor
    storage: dict[str, torch.Tensor]
    bias: torch.Tensor | None

    @staticmethod
    def draw(config: LowBitLinear, seed: int) -> Layer:
        generator = torch.Generator().manual_seed(seed)
        shape = (config.out_features, config.in_features)
        codes = torch.randint(0, config.encoding.grid.count, shape, generator=generator, dtype=torch.uint8)
        scales = torch.randn(shape[0], config.groups, generator=generator)
        zeros = torch.randint(0, config.encoding.grid.count, scales.shape, generator=generator, dtype=torch.uint8)
        bias = torch.randn(shape[0], generator=generator) if config.bias else None
        return Layer.of(config, codes, scales, zeros, bias)

    @staticmethod
    def of(
        config: LowBitLinear,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Layer:
        packing = config.encoding.packing
        storage = {"values": packing.pack(codes), "scales": scales.to(config.encoding.scale_dtype)}
        levels = config.encoding.grid.levels(codes)
        if config.layout.zero_points:
            assert zeros is not None
            storage["zeros"] = packing.pack(zeros)
            levels = levels - zeros.to(torch.int16).repeat_interleave(config.group, 1)
        return Layer(levels, storage, bias)


def activations(config: LowBitLinear, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (rows, config.in_features), generator=generator).to(torch.int8)
    return codes, torch.rand(rows, 1, generator=generator) + 0.01


def apply(config: LowBitLinear, layer: Layer, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    y = torch.full((codes.shape[0], config.out_features), float("nan"))
    packed = pack_weight(config, layer.storage)
    compiled(config)(codes.clone(), scale.clone(), packed, *([] if layer.bias is None else [layer.bias]), y)
    return y


def dots(config: LowBitLinear, layer: Layer, codes: torch.Tensor) -> np.ndarray:
    """The exact integers, (groups, rows, columns)."""
    x = codes.long().unflatten(-1, (-1, config.group)).transpose(0, 1)
    return (x @ layer.levels.long().unflatten(-1, (-1, config.group)).permute(1, 2, 0)).numpy()


def model(config: LowBitLinear, layer: Layer, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The arithmetic that the kernel's module states, step by step."""
    w_scale, x_scale = layer.storage["scales"].float().numpy(), scale.numpy()
    t = np.zeros((codes.shape[0], config.out_features), np.float32)
    for group, dot in enumerate(dots(config, layer, codes)):
        assert np.all(dot == dot.astype(np.float32)) or np.abs(dot).max() > 2**24
        t = fma(dot.astype(np.float32), w_scale[None, :, group], t)
    y = t * x_scale if layer.bias is None else fma(t, x_scale, layer.bias.numpy()[None])
    return torch.from_numpy(y)


@by_encoding
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 14), seed=st.integers(0, 2**31))
def test_bits_are_those_of_the_stated_arithmetic(tile: Int8Tile, problem: Any, rows: int, seed: int) -> None:
    config = config_of(tile, problem)
    layer = Layer.draw(config, seed)
    x = activations(config, rows, seed + 1)
    assert torch.equal(apply(config, layer, *x), model(config, layer, *x))


@by_encoding
@pytest.mark.parametrize("end", ["lowest", "highest"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_saturates(tile: Int8Tile, problem: Problem, end: str, sign: int) -> None:
    config = config_of(tile, problem)
    last = config.encoding.grid.count - 1
    code, zero = (0, last) if end == "lowest" else (last, 0)
    codes = torch.full((config.out_features, config.in_features), code, dtype=torch.uint8)
    scales = torch.ones(config.out_features, config.groups)
    zeros = torch.full(scales.shape, zero, dtype=torch.uint8)
    layer = Layer.of(config, codes, scales, zeros, torch.zeros(config.out_features) if config.bias else None)
    level = int(layer.levels[0, 0])
    x = torch.full((4, config.in_features), sign * 127, dtype=torch.int8)
    y = apply(config, layer, x, torch.ones(4, 1))
    assert torch.equal(y, torch.full_like(y, sign * 127.0 * level * config.in_features))


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


@pytest.mark.full
@by_tile
def test_bits_do_not_depend_on_the_configuration(tile: Int8Tile) -> None:
    candidates = configurations(tile, 128, 3 * tile.lanes + 1, GroupedInt(4, 64), True)
    assert len(set(candidates)) == len(candidates)
    layer = Layer.draw(candidates[0], 1)
    x = activations(candidates[0], 9, 2)
    expected = model(candidates[0], layer, *x)
    for config in candidates[:: len(candidates) - 1]:
        assert torch.equal(apply(config, layer, *x), expected)


@pytest.mark.nightly
@by_problem
def test_every_register_tile_at_every_number_of_rows(tile: Int8Tile, problem: Any) -> None:
    encoding, groups, bias, beyond = problem
    # One of each shape of register tile: what else varies is not worth its compilation.
    candidates = configurations(tile, encoding.group * groups, 6 * tile.lanes + beyond, encoding, bias)
    for config in {(config.rows, config.vectors): config for config in candidates}.values():
        layer = Layer.draw(config, 3)
        codes, scale = activations(config, 26, 4)
        expected = model(config, layer, codes, scale)
        for rows in range(1, 27):
            assert torch.equal(apply(config, layer, codes[:rows], scale[:rows]), expected[:rows])


@by_problem
def test_within_the_bound_of_float64(tile: Int8Tile, problem: Any) -> None:
    config = config_of(tile, problem)
    layer = Layer.draw(config, 5)
    codes, scale = activations(config, 7, 6)
    terms = dots(config, layer, codes) * layer.storage["scales"].double().numpy().T[:, None, :] * scale.double().numpy()
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
    packed = displaced(pack_weight(config, layer.storage))
    compiled(config)(displaced(codes), displaced(scale), packed, y)
    assert torch.equal(y, model(config, layer, codes, scale))


def test_register_tiles_may_cut_bundles() -> None:
    config = config_of(DOTS[0], PROBLEMS[0], vectors=3)
    assert (config.layout.shared, config.layout.vectors) == (2, 6)
    layer = Layer.draw(config, 8)
    x = activations(config, 2, 9)
    assert torch.equal(apply(config, layer, *x), model(config, layer, *x))


@by_tile
def test_one_column(tile: Int8Tile) -> None:
    config = config_of(tile, (GroupedInt(4, 32, torch.float32), 1, True, 0), out_features=1)
    layer = Layer.draw(config, 7)
    x = activations(config, 5, 8)
    assert torch.equal(apply(config, layer, *x), model(config, layer, *x))


def test_refusals() -> None:
    tile = DOTS[0]
    with pytest.raises(ValueError, match="group of 32 does not divide the 80 input features"):
        LowBitLinear(80, 8, GroupedInt(4, 32), False, tile, 1, 1)
    with pytest.raises(ValueError, match="group of 12 cannot be cut into steps of 8 elements, as int4g12sf16 needs"):
        LowBitLinear(60, 8, GroupedInt(4, 12), False, tile, 1, 1)
    with pytest.raises(ValueError, match="group of 16 cannot be cut into steps of 32 elements, as int5g16sf16 needs"):
        LowBitLinear(64, 8, GroupedInt(5, 16), False, tile, 1, 1)
    with pytest.raises(ValueError, match="dot products of 3 elements"):
        LowBitLayout(GroupedInt(4, 48), 4, 3, 1)
    with pytest.raises(ValueError, match="inserts no bytes"):
        tile.insert(T.uint8(0), T.uint8(0), 1)
    with pytest.raises(ValueError, match="at least 1"):
        LowBitLinear(64, 8, GroupedInt(4, 32), False, tile, 0, 1)
    with pytest.raises(ValueError, match="too large here: use at most 518"):
        LowBitLinear(8192, 8, GroupedInt(8, 1024, zero_points=True), False, tile, 1, 1)
    config = LowBitLinear(64, 8, GroupedInt(4, 32), False, tile, 1, 1)
    values, scales = torch.zeros(8, 32, dtype=torch.uint8), torch.zeros(8, 2, dtype=torch.float16)
    for storage, message in (
        (
            {"values": values[:7], "scales": scales},
            r"the values of a weight \(8, 64\) .* must be u8\[8, 32\], not torch.uint8",
        ),
        (
            {"values": values, "scales": scales.float()},
            r"the scales of a weight .* must be f16\[8, 2\], not torch.float32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pack_weight(config, storage)
