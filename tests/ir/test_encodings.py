"""Encodings: what they hold, how exactly, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Dense, Encoding, Grouped, GroupedInt, IRError, Levels, TensorType
from planish.ir.attributes import attribute_key
from planish.ir.encodings import ENCODINGS
from planish.ir.encodings.grouped import BLOCK, SCALE_DTYPES, Grid
from planish.ir.encodings.levels import KINDS
from planish.ir.encodings.packing import BitPacking, Packing, TritPacking
from planish.testing.tensors import generators


@st.composite
def symmetric(draw: st.DrawFn) -> GroupedInt:
    return GroupedInt(draw(st.integers(1, 8)), draw(st.integers(1, 9)), draw(st.sampled_from(SCALE_DTYPES)))


@st.composite
def shifted(draw: st.DrawFn) -> GroupedInt:
    return GroupedInt(draw(st.integers(1, 8)), draw(st.integers(1, 9)), draw(st.sampled_from(SCALE_DTYPES)), True)


@st.composite
def levels(draw: st.DrawFn) -> Levels:
    return Levels(draw(st.sampled_from(list(KINDS))), draw(st.integers(1, 9)), draw(st.sampled_from(SCALE_DTYPES)))  # type: ignore[arg-type]


grouped = st.one_of(symmetric(), shifted(), levels())
PACKINGS = [*(BitPacking(bits) for bits in range(1, 9)), TritPacking()]


@st.composite
def weights(draw: st.DrawFn, encoding: Grouped) -> torch.Tensor:
    """Float32 data of every magnitude that the scales hold, zeros and whole groups of zeros included."""
    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), encoding.group * draw(st.integers(1, 3)))
    data = torch.randn(shape, generator=draw(generators())) * 2.0 ** draw(st.integers(-10, 10))
    data[data.abs() < draw(st.sampled_from([0.0, 0.5, 100.0]))] = 0
    return data


def type_of(tensor: torch.Tensor) -> TensorType:
    return TensorType(tensor.dtype, tuple(tensor.shape))


@given(st.data())
def test_error_is_half_a_step_except_where_codes_end(data: st.DataObject) -> None:
    """Beyond the outermost levels, the level at that end; scales are rounded first, subnormal ones by much."""
    encoding = data.draw(grouped)
    x = data.draw(weights(encoding))
    storage = encoding.encode(x)
    decoded = encoding.decode(storage, type_of(x))
    scale = encoding.scales(storage).to(torch.float64).repeat_interleave(encoding.group, -1)
    assert bool(scale.isfinite().all())
    ends = torch.stack([encoding.grid.levels(torch.tensor(code)) for code in (0, encoding.grid.count - 1)]).double()
    ends = ends.expand(*x.shape, 2)
    if "zeros" in storage:
        zeros = encoding.packing.unpack(storage["zeros"], x.shape[-1] // encoding.group)
        ends = ends - zeros.double().repeat_interleave(encoding.group, -1).unsqueeze(-1)
    level = torch.where(scale == 0, 0.0, x.double() / scale)
    rounding = 2.0**-23 * x.double().abs()  # a float32 scale times a level is rounded once
    reach = encoding.grid.step / 2
    inside = (level >= ends[..., 0] - reach) & (level <= ends[..., 1] + reach)
    if encoding.scale_dtype == torch.int8:
        # Beside a group that is 254 times as large the multiple is 0, and so is all that it scales.
        lost = (scale == 0) & (x != 0)
        assert not bool(decoded[lost].any())
        inside &= ~lost
    error = (decoded.double() - x.double()).abs()
    assert bool((error <= scale.abs() * reach + rounding)[inside].all())
    end = torch.maximum(torch.minimum(level, ends[..., 1]), ends[..., 0]) * scale
    assert bool(((decoded.double() - end).abs() <= 2.0**-23 * end.abs())[~inside].all())


@given(st.data())
def test_the_largest_of_a_group_takes_the_most_negative_code(data: st.DataObject) -> None:
    """The whole range is used: the peak is off by the rounding of its scale only, which is small but for subnormal ones."""
    encoding = data.draw(symmetric().filter(lambda e: e.scale_dtype != torch.int8))
    x = data.draw(weights(encoding)).unflatten(-1, (-1, encoding.group))
    storage = encoding.encode(x.flatten(-2))
    codes = encoding.levels(storage["values"], x.shape[-2] * x.shape[-1])
    codes = codes.unflatten(-1, (-1, encoding.group))
    peak = x.abs().argmax(-1, keepdim=True)
    wanted = torch.where(x.gather(-1, peak) == 0, 0, -encoding.zero)
    scale = storage["scales"].unsqueeze(-1)
    got, largest = codes.gather(-1, peak), x.gather(-1, peak)
    exact = (scale.abs() >= torch.finfo(scale.dtype).tiny) | (largest == 0)
    assert torch.equal(got[exact], wanted.to(torch.int16)[exact])
    # A subnormal scale has few digits: the peak takes the nearest code that there is.
    nearest = (largest.double() / scale.double()).clamp(-encoding.zero, encoding.zero - 1)
    # The quotient is rounded once to float32 before it is rounded to a code.
    assert bool(((got.double() - nearest).abs() <= 0.5 + 2.0**-23 * nearest.abs())[~exact & (scale != 0)].all())


@given(st.data())
def test_encoding_what_was_decoded_changes_nothing(data: st.DataObject) -> None:
    """Where the largest of a group is held exactly."""
    encoding = data.draw(symmetric().filter(lambda e: e.scale_dtype != torch.int8))
    x = data.draw(weights(encoding)).double()
    once = encoding.decode(encoding.encode(x), type_of(x))
    assert torch.equal(encoding.decode(encoding.encode(once), type_of(x)), once)


@given(st.data())
def test_scales_of_int8_are_multiples_of_one_number_for_a_block(data: st.DataObject) -> None:
    """Each is off by at most half a unit, the largest of a block is 127 units, and holding them again changes nothing."""
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), 1)
    wanted = torch.randn(shape, generator=data.draw(generators()), dtype=torch.float64) * 2.0 ** data.draw(
        st.integers(-60, 60)
    )
    wanted[wanted.abs() < data.draw(st.sampled_from([0.0, 0.5]))] = 0
    encoding = GroupedInt(4, 8, torch.int8)
    kept = encoding.kept(wanted)
    assert torch.equal(encoding.kept(kept.double()), kept)
    for block, near in zip(
        wanted.squeeze(-1).split(BLOCK, -1), kept.double().squeeze(-1).split(BLOCK, -1), strict=True
    ):
        unit = near.abs().amax(-1, keepdim=True) / 127
        # The unit itself is rounded to 8 bits: the largest scale is off by at most a 256th.
        error = (near - block).abs()
        assert bool((error <= torch.maximum(unit / 2, block.abs() / 256) * (1 + 1e-12)).all())
        assert torch.equal(unit, unit.to(torch.bfloat16).double())


@given(st.data())
def test_grouped_bytes_are_exact(data: st.DataObject) -> None:
    encoding: GroupedInt | Levels = data.draw(grouped)
    x = data.draw(weights(encoding))
    storage = encoding.encode(x)
    layout = encoding.layout(type_of(x))
    assert {name: type_of(t) for name, t in storage.items()} == layout
    held = sum(t.numel() * t.element_size() for t in storage.values())
    rows, groups = x.numel() // x.shape[-1], x.shape[-1] // encoding.group
    few = {"sign": 1, "ternary": 1.6, "ternary2": 2, "stretched": 2}
    bits = few[encoding.kind] if isinstance(encoding, Levels) else encoding.bits
    # A byte of five trits is a byte of eight bits; three bits, for one, fill whole bytes eight at a time.
    unit = 5 if bits == 1.6 else 8 // math.gcd(8, int(bits))
    of_row = -(-x.shape[-1] // unit) * unit * bits / 8 + groups * encoding.scale_dtype.itemsize
    of_row += -(-groups // unit) * unit * bits / 8 if "zeros" in storage else 0
    of_row += -(-groups // BLOCK) * 2 if encoding.scale_dtype == torch.int8 else 0
    assert encoding.nbytes(type_of(x)) == held == round(rows * of_row)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@given(st.data())
def test_packing_is_undone_by_unpacking(packing: Packing, data: st.DataObject) -> None:
    count = 3 if isinstance(packing, TritPacking) else 1 << packing.bits  # type: ignore[attr-defined]
    size = data.draw(st.integers(1, 30))
    codes = torch.randint(0, count, (2, size), generator=data.draw(generators()), dtype=torch.uint8)
    packed = packing.pack(codes)
    assert packed.shape == (2, packing.width(size))
    assert torch.equal(packing.unpack(packed, size), codes)


def test_the_lowest_index_lies_in_the_lowest_bits() -> None:
    assert BitPacking(4).pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8)).tolist() == [[0x21, 0x03]]
    # 1, 2, 3, ... 7, 0 in three bits each, read as one number of 24 bits.
    number = sum(code << 3 * place for place, code in enumerate([1, 2, 3, 4, 5, 6, 7, 0]))
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8)
    assert BitPacking(3).pack(codes).tolist() == list(number.to_bytes(3, "little"))
    assert TritPacking().pack(torch.tensor([2, 1, 0, 2, 1, 2], dtype=torch.uint8)).tolist() == [2 + 3 + 54 + 81, 2]


GOLDEN = [-1, -0.51, -0.5, -0.49, -0.01, 0, 0.01, 0.49, 0.5, 0.51, 1]
"""For alpha = 1, worked out by hand from ParetoQ's formulas (halves to even)."""


@pytest.mark.parametrize(
    "kind, over_scale, wanted",
    [
        ("stretched", 4, [-0.75, -0.75, -0.75, -0.25, -0.25, 0.25, 0.25, 0.25, 0.25, 0.75, 0.75]),
        ("ternary", 3 / 2, [-2 / 3, -2 / 3, -2 / 3, -2 / 3, 0, 0, 0, 2 / 3, 2 / 3, 2 / 3, 2 / 3]),
        ("ternary2", 3 / 2, [-2 / 3, -2 / 3, -2 / 3, -2 / 3, 0, 0, 0, 2 / 3, 2 / 3, 2 / 3, 2 / 3]),
        ("sign", 1, [-1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_few_levels_are_paretoqs(kind: str, over_scale: float, wanted: list[float]) -> None:
    encoding = Levels(kind, len(GOLDEN), torch.float32)  # type: ignore[arg-type]
    codes = encoding.quantize(
        torch.tensor(GOLDEN, dtype=torch.float64), torch.tensor(1 / over_scale, dtype=torch.float64)
    )
    assert (encoding.grid.levels(codes).double() / over_scale).tolist() == pytest.approx(wanted)
    x = torch.tensor([GOLDEN])
    decoded = encoding.decode(encoding.encode(x), type_of(x))
    if kind != "sign":
        assert decoded[0].tolist() == pytest.approx(wanted)
    else:
        assert decoded[0].abs().tolist() == pytest.approx([sum(map(abs, GOLDEN)) / len(GOLDEN)] * len(GOLDEN))


@given(st.integers(-9, 3), st.sampled_from([1, 2]), st.integers(2, 20))
def test_levels_are_their_own_nearest(first: int, step: int, count: int) -> None:
    grid = Grid(first, step, count)
    codes = torch.arange(count, dtype=torch.uint8)
    assert torch.equal(grid.nearest(grid.levels(codes).double()), codes)
    assert grid.largest == int(grid.levels(codes).abs().max()) or first > 0


@given(grouped, st.integers(1, 40))
def test_a_group_that_does_not_divide_is_refused(encoding: Grouped, size: int) -> None:
    type = TensorType(torch.float32, (2, size))
    if size % encoding.group == 0:
        assert {"values", "scales"} <= set(encoding.layout(type))
        return
    with pytest.raises(IRError, match=f"a group of {encoding.group} does not divide the last axis .* divides {size}"):
        encoding.encode(torch.zeros(2, size))


def test_scales_saturate_instead_of_overflowing() -> None:
    x = torch.tensor([[1e30, -1.0]])
    decoded = GroupedInt(8, 2).decode(GroupedInt(8, 2).encode(x), type_of(x))
    assert bool(decoded.isfinite().all()) and float(decoded[0, 0]) == 128 * 65504


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((9, 8, torch.float16), "9 bits are not supported; choose 1 to 8"),
        ((0, 8, torch.float16), "0 bits are not supported"),
        ((4, 0, torch.float16), "at least one element"),
        ((4, 8, torch.float64), "float64 are not supported"),
    ],
)
def test_grouped_parameters_are_checked(arguments: tuple[int, int, torch.dtype], message: str) -> None:
    with pytest.raises(IRError, match=message):
        GroupedInt(*arguments)


def test_grids_are_checked() -> None:
    with pytest.raises(IRError, match="no grid of levels is called 'quinary'; choose one of sign, ternary"):
        Levels("quinary", 8)  # type: ignore[arg-type]


@given(shifted(), generators())
def test_a_zero_point_holds_zero_exactly(encoding: GroupedInt, generator: torch.Generator) -> None:
    x = torch.randn(3, 4 * encoding.group, generator=generator) + 2
    x[:, ::2] = 0
    decoded = encoding.decode(encoding.encode(x), type_of(x))
    assert bool((decoded[:, ::2] == 0).all())


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    generators(),
    st.lists(st.integers(0, 4), max_size=3),
)
def test_dense_holds_its_own_dtype_exactly(dtype: torch.dtype, generator: torch.Generator, shape: list[int]) -> None:
    x = torch.randn(shape, generator=generator).to(dtype)
    encoding = Dense(dtype)
    assert torch.equal(encoding.decode(encoding.encode(x), type_of(x)), x)
    assert encoding.nbytes(type_of(x)) == math.prod(shape) * dtype.itemsize
    wide = TensorType(torch.float64, tuple(shape))
    assert torch.equal(encoding.decode(encoding.encode(x), wide), x.double())


def test_registry_names_are_the_encodings_own() -> None:
    assert {name: made.name for name, made in ENCODINGS.items()} == {name: name for name in ENCODINGS}
    assert all(issubclass(made, Encoding) for made in ENCODINGS.values())
    assert attribute_key(GroupedInt(4, 8)) != attribute_key(GroupedInt(4, 16))
