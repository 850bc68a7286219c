"""Laws of linear kernels that decode their weight: exact on integers, the bits of the stated arithmetic, small storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.build import build
from planish.codegen.kernels.linear_decoded import linear_decoded
from planish.codegen.kernels.linear_decoded_config import LinearDecoded, configurations, pack_weight
from planish.codegen.kernels.linear_decoded_packing import Blocked, DecodedLayout, bits_of, group_of
from planish.codegen.kernels.linear_dense import LinearDense, linear_dense
from planish.codegen.kernels.linear_dense import pack_weight as pack_dense
from planish.codegen.tiles.float import E4M3, FloatTile
from planish.ir import (
    Builder,
    Encoding,
    Float8,
    Grouped,
    GroupedInt,
    InMemory,
    InputError,
    Levels,
    Module,
    MxFp4,
    NvFp4,
    Param,
    ParamRef,
    TensorType,
    dense_param,
    symbol,
)
from planish.ir.encodings.float_blocks import FOURS
from planish.ir.encodings.levels import KINDS
from planish.ir.ops import Linear
from planish.testing.compiled import call, faults, host
from planish.testing.float_kernels import (
    TILES,
    by_tile,
    compile_kernel,
    fma,
    fma_chain,
    gaussian,
    small_integers,
    unaligned,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
full = pytest.mark.full
QUICK: list[Blocked] = [GroupedInt(4, 32), NvFp4(), GroupedInt(3, 32, F32, True)]
OTHERS: list[Blocked] = [
    MxFp4(),
    *(Levels(kind, 32, BF16) for kind in KINDS),  # type: ignore[arg-type]
    *(GroupedInt(bits, 32) for bits in (1, 2, 5, 6, 7, 8)),
    *(GroupedInt(bits, 48, BF16, True) for bits in (1, 4, 8)),
    # Words of two bytes, and of one.
    GroupedInt(4, 20),
    GroupedInt(3, 8),
]


def by(encodings: list[Blocked], marks: Any = ()) -> list[Any]:
    """Every tile with encodings of few bits, which tiles decode in ways of their own; the widest one with the others."""
    return [
        pytest.param(tile, e, marks=marks, id=f"{tile.name}-{e}")
        for tile in TILES
        for e in encodings
        if bits_of(e) <= 4 or tile is TILES[0]
    ]


by_encoding = pytest.mark.parametrize("tile, encoding", by(QUICK) + by(OTHERS, full))
by_few = pytest.mark.parametrize("tile, encoding", by(QUICK))


def config_of(tile: FloatTile, encoding: Blocked, **changes: Any) -> LinearDecoded:
    """A kernel cut so small that a few dozen rows, groups and columns pass through every loop and every remainder."""
    config = LinearDecoded(
        3 * group_of(encoding),
        5 * tile.lanes + 3,
        encoding,
        True,
        tile,
        rows=2,
        vectors=2,
        few=2,
        one_row_panels=2,
        depth_block=2 * group_of(encoding),
        task_tiles=2,
        prefetch=512,
    )
    return replace(config, **changes)


@cache
def compiled_kernel(config: LinearDecoded) -> Any:
    return compile_kernel(linear_decoded(config), config.tile)


def stored(config: LinearDecoded, seed: int, unit: bool = False) -> dict[str, torch.Tensor]:
    """Storage with every code that there is; with `unit` all scales are 1."""
    encoding, shape = config.encoding, (config.out_features, config.in_features)
    generator = torch.Generator().manual_seed(seed)
    count = encoding.grid.count if isinstance(encoding, Grouped) else 16
    packing = encoding.packing if isinstance(encoding, Grouped) else FOURS
    storage = {"values": packing.pack(torch.randint(0, count, shape, generator=generator, dtype=torch.uint8))}
    groups = shape[0], config.groups
    if isinstance(encoding, Grouped):
        scales = torch.ones(groups) if unit else torch.randn(groups, generator=generator)
        storage["scales"] = scales.to(encoding.scale_dtype)
        if config.layout.zero_points:
            zeros = torch.randint(0, count, groups, generator=generator, dtype=torch.uint8)
            storage["zeros"] = packing.pack(zeros)
    else:
        one, largest = (0x38, 0x7F) if isinstance(encoding, NvFp4) else (127, 140)
        drawn = torch.randint(one - 20, largest, groups, generator=generator, dtype=torch.uint8)
        storage["scales"] = torch.full_like(drawn, one) if unit else drawn
    if isinstance(encoding, NvFp4):
        storage["tensor_scale"] = torch.tensor(1.0 if unit else 0.37)
    return storage


def decoded(config: LinearDecoded, storage: Mapping[str, torch.Tensor], dtype: torch.dtype = F32) -> torch.Tensor:
    return config.encoding.decode(storage, TensorType(dtype, (config.out_features, config.in_features)))


def apply(
    config: LinearDecoded, storage: Mapping[str, torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    y = torch.full((x.shape[0], config.out_features), float("nan"))
    scale = [storage["tensor_scale"].reshape(1)] if config.tensor_scale else []
    added = [] if bias is None else [bias]
    compiled_kernel(config)(x.contiguous(), pack_weight(config, storage), *scale, *added, y)
    return y


def model(
    config: LinearDecoded, storage: Mapping[str, torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The arithmetic that the kernel's module states, step by step."""
    encoding, ones = config.encoding, dict(storage)
    if isinstance(encoding, Grouped):
        scales = storage["scales"].to(F32)
    else:
        scales = encoding.scales({**storage, "tensor_scale": torch.tensor(1.0)}).to(F32)
    ones["scales"] = stored(config, 0, unit=True)["scales"]
    if config.tensor_scale:
        ones["tensor_scale"] = torch.tensor(1.0)
    levels = decoded(config, ones)
    t, group = np.zeros((len(x), config.out_features), np.float32), group_of(encoding)
    for g in range(config.groups):
        part = slice(g * group, (g + 1) * group)
        dot = fma_chain(x[:, part], levels[:, part]).numpy()
        t = fma(dot, scales[None, :, g].numpy(), t)
    if config.tensor_scale:
        scale = storage["tensor_scale"].numpy().reshape(1, 1)
        return torch.from_numpy(t * scale if bias is None else fma(t, scale, bias.numpy()[None]))
    return torch.from_numpy(t if bias is None else t + bias.numpy())


@by_encoding
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(0, 17), seed=st.integers(0, 2**31))
def test_exact_on_integers(tile: FloatTile, encoding: Blocked, rows: int, seed: int) -> None:
    """Levels are integers, or halves, and sums of a hundred of their products stay far below 2^24."""
    config = config_of(tile, encoding)
    storage = stored(config, seed, unit=True)
    x, bias = small_integers(rows, config.in_features, seed=seed), small_integers(config.out_features, seed=seed)
    expected = x.double() @ decoded(config, storage).double().T + bias.double()
    assert torch.equal(apply(config, storage, x, bias).double(), expected)


@by_encoding
def test_bits_are_those_of_the_stated_arithmetic(tile: FloatTile, encoding: Blocked) -> None:
    config = config_of(tile, encoding)
    storage = stored(config, 1)
    x, bias = gaussian(17, config.in_features, seed=2), gaussian(config.out_features, seed=3)
    expected = model(config, storage, x, bias)
    for rows in (1, 2, 5, 17):
        assert torch.equal(apply(config, storage, x[:rows], bias), expected[:rows]), rows


@by_encoding
def test_every_element_is_decoded_exactly(tile: FloatTile, encoding: Blocked) -> None:
    """Rows of the identity bring forth the columns of the weight, each the one rounding of a level times its scale."""
    config = config_of(tile, encoding)
    storage = stored(config, 4)
    if isinstance(encoding, NvFp4 | MxFp4):
        every = torch.arange(storage["scales"].numel()) % 256
        every[(every & 0x7F == 0x7F) if isinstance(encoding, NvFp4) else every > 252] = 1
        storage["scales"] = every.to(torch.uint8).reshape(storage["scales"].shape)
    if isinstance(encoding, NvFp4):
        storage["tensor_scale"] = torch.tensor(0.25)
    y = apply(config, storage, torch.eye(config.in_features), torch.zeros(config.out_features))
    assert torch.equal(y.T, decoded(config, storage))


@by_few
@settings(max_examples=10, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(
    tile: FloatTile, encoding: Blocked, data: st.DataObject, seed: int
) -> None:
    config = config_of(tile, encoding)
    storage, x = stored(config, seed), gaussian(17, config.in_features, seed=seed)
    bias = gaussian(config.out_features, seed=seed)
    whole = apply(config, storage, x, bias)
    rows = data.draw(st.integers(1, 16))
    start = data.draw(st.integers(0, 17 - rows))
    part = slice(start, start + rows)
    assert torch.equal(apply(config, storage, x[part], bias), whole[part])


@pytest.mark.parametrize("tile, encoding", by(QUICK, full))
@pytest.mark.parametrize("columns", ["one", "vector", "whole"])
def test_without_a_bias_and_at_every_width(tile: FloatTile, encoding: Blocked, columns: str) -> None:
    outs = {"one": 1, "vector": tile.lanes, "whole": 4 * tile.lanes}[columns]
    config = config_of(tile, encoding, out_features=outs, bias=False)
    storage, x = stored(config, 5), gaussian(8, config.in_features, seed=6)
    for rows in (1, 2, 8):
        assert torch.equal(apply(config, storage, x[:rows], None), model(config, storage, x[:rows], None))


@pytest.mark.parametrize("tile, encoding", by(QUICK[:1], full))
def test_bits_do_not_depend_on_the_configuration(tile: FloatTile, encoding: Blocked) -> None:
    candidates = configurations(tile, 3 * group_of(encoding), 3 * tile.lanes + 1, encoding, True)
    assert len(set(candidates)) == len(candidates)
    storage = stored(candidates[0], 7)
    x, bias = gaussian(9, candidates[0].in_features, seed=8), gaussian(candidates[0].out_features, seed=9)
    expected = model(candidates[0], storage, x, bias)
    for config in candidates[:: len(candidates) - 1]:
        for rows in (1, 4, 9):
            assert torch.equal(apply(config, storage, x[:rows], bias), expected[:rows])


@by_few
def test_within_the_bound_of_float64(tile: FloatTile, encoding: Blocked) -> None:
    config = config_of(tile, encoding)
    storage, x = stored(config, 10), gaussian(7, config.in_features, seed=11).double()
    bias, weight = gaussian(config.out_features, seed=12), decoded(config, storage, torch.float64)
    # A term is rounded once in each step of its group's chain, by its scale and in each later group, then by the
    # tensor's scale or the bias; the meaning in float64 has roundings 2**29 times smaller.
    n, u = group_of(encoding) + config.groups + 1, 2.0**-24 + 2.0**-52
    gamma = n * u / (1 - n * u)
    error = (apply(config, storage, x.float(), bias).double() - (x @ weight.T + bias.double())).abs()
    assert bool((error <= gamma * (x.abs() @ weight.abs().T + bias.abs().double())).all())


@by_tile
@pytest.mark.parametrize("rows", [1, 7])
def test_tensors_may_lie_anywhere(tile: FloatTile, rows: int) -> None:
    config = config_of(tile, QUICK[0])
    storage, x = stored(config, 13), gaussian(rows, config.in_features, seed=14)
    bias = gaussian(config.out_features, seed=15)
    y = unaligned(torch.empty(rows, config.out_features))
    compiled_kernel(config)(unaligned(x), unaligned(pack_weight(config, storage)), unaligned(bias), y)
    assert torch.equal(y, model(config, storage, x, bias))


@pytest.mark.parametrize("encoding", [*QUICK, *OTHERS], ids=str)
def test_packed_weights_have_the_bytes_of_their_codes_and_scales(encoding: Blocked) -> None:
    config = config_of(TILES[0], encoding)
    storage = stored(config, 16)
    rows = config.panels * config.layout.columns
    scales = storage["scales"].element_size() + config.layout.zero_points
    expected = rows * config.groups * (group_of(encoding) * bits_of(encoding) // 8 + scales)
    assert pack_weight(config, storage).numel() == expected == config.panels * config.groups * config.layout.block_bytes


@dataclass(frozen=True)
class EightBits:
    """A dense kernel on eight-bit floats, cut small."""

    tile: FloatTile

    @property
    def config(self) -> LinearDense:
        return LinearDense(43, 3 * self.tile.lanes + 3, E4M3, True, self.tile, 3, 2, 2, 16, task_panels=2, task_tiles=2)

    def apply(self, x: torch.Tensor, bits: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = torch.full((len(x), self.config.out_features), float("nan"))
        _eight_bits(self.config)(
            x.contiguous(), pack_dense(self.config, bits.view(torch.float8_e4m3fn)), scales, bias, y
        )
        return y


@cache
def _eight_bits(config: LinearDense) -> Any:
    return compile_kernel(linear_dense(config), config.tile)


@by_tile
def test_eight_bit_floats_are_decoded_exactly_and_scaled_at_the_end(tile: FloatTile) -> None:
    layer = EightBits(tile)
    outs, ins = layer.config.out_features, layer.config.in_features
    bits = (torch.arange(outs * ins) % 255).to(torch.uint8).reshape(outs, ins)
    bits[bits == 0x7F] = 0x80
    values, scales = bits.view(torch.float8_e4m3fn).float(), gaussian(outs, seed=17)
    y = layer.apply(torch.eye(ins), bits, torch.ones(outs), torch.zeros(outs))
    assert torch.equal(y.T, values)
    x, bias = gaussian(17, ins, seed=18), gaussian(outs, seed=19)
    expected = torch.from_numpy(fma(fma_chain(x, values).numpy(), scales[None].numpy(), bias[None].numpy()))
    for rows in (1, 2, 5, 17):
        assert torch.equal(layer.apply(x[:rows], bits, scales, bias), expected[:rows])


def layer(encoding: Encoding, outs: int, ins: int, storage: Mapping[str, torch.Tensor] | None = None) -> Module:
    """A linear layer with an encoded weight, and a bias where the number of outputs is odd."""
    values = gaussian(outs, ins, seed=outs)
    held = InMemory(encoding.encode(values) if storage is None else dict(storage))
    params = [Param("weight", TensorType(F32, (outs, ins)), encoding, held)]
    if outs % 2:
        params.append(dense_param("bias", gaussian(outs, seed=ins)))
    builder = Builder("f")
    x = builder.input("x", TensorType(F32, (symbol("M"), ins)))
    refs = [ParamRef(p.name, p.type) for p in params]
    node = builder.node(Linear(), x, refs[0], refs[1] if len(refs) > 1 else None)
    return Module({"f": builder.finish(node.outputs, ["y"])}, {p.name: p for p in params})


@full
@pytest.mark.parametrize("encoding", [GroupedInt(4, 32), NvFp4(), Float8("row"), Float8("tensor")], ids=str)
def test_artifacts_hold_the_codes_report_their_bytes_and_agree_with_the_interpreter(encoding: Encoding) -> None:
    module = layer(encoding, 128, 96)
    artifact = build(module, host())
    report = artifact.manifest["report"]["functions"]["f"]
    (row,), rows = report["steps"], report["sizes"]["M"]
    # No panel is padded at this size. One scale for all eight-bit floats is stored for each of the columns.
    repeated = 4 * (128 - 1) if encoding == Float8("tensor") else 0
    assert row["bytes_here"] == module.params["weight"].nbytes + repeated + 4 * rows * (96 + 128)
    assert str(encoding) in row["kernel"]
    executable = artifact.load()
    for count in (1, 5, 17):
        x = gaussian(count, 96, seed=count)
        assert not faults(module, "f", [x], call(executable, "f", [x])), count


def test_refusals_name_what_is_wrong() -> None:
    tile = TILES[0]
    with pytest.raises(
        ValueError, match=r"group of 12 cannot be cut into steps of 8 elements, as int3g12sf16 needs here"
    ):
        DecodedLayout(GroupedInt(3, 12), 4, 2)
    with pytest.raises(ValueError, match="group of 32 does not divide the 33 input features"):
        config_of(tile, GroupedInt(4, 32), in_features=33)
    with pytest.raises(ValueError, match="at least 1"):
        config_of(tile, QUICK[0], few=0)
    with pytest.raises(ValueError, match="registers"):
        config_of(tile, QUICK[0], rows=40)
    config = config_of(tile, QUICK[0])
    with pytest.raises(ValueError, match=r"the scales of a weight .* must be f16"):
        pack_weight(config, {**stored(config, 1), "scales": torch.ones(3)})


@pytest.mark.parametrize(
    "encoding, field", [(NvFp4(), "scales"), (MxFp4(), "scales"), (Float8("row"), "values")], ids=str
)
def test_weights_with_nan_are_refused(encoding: Encoding, field: str, tmp_path: Any) -> None:
    storage = dict(encoding.encode(gaussian(8, 32, seed=1)))
    storage[field] = storage[field].clone()
    storage[field].view(-1)[3] = 0xFF
    with pytest.raises(InputError, match=f"the weight 'weight', encoded as {encoding}, has NaN in it"):
        build(layer(encoding, 8, 32, storage), host()).save(tmp_path / "artifact")
