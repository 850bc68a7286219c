"""Encodings: what they hold, how exactly, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Dense, Encoding, GroupedInt, IRError, TensorType
from planish.ir.attributes import attribute_key
from planish.ir.encodings import ENCODINGS
from planish.ir.encodings.grouped import PACKABLE_BITS, SCALE_DTYPES
from planish.testing.tensors import generators


@st.composite
def grouped(draw: st.DrawFn) -> GroupedInt:
    bits = draw(st.sampled_from(PACKABLE_BITS))
    return GroupedInt(bits, draw(st.integers(1, 4)) * (8 // bits), draw(st.sampled_from(SCALE_DTYPES)))


@st.composite
def weights(draw: st.DrawFn, encoding: GroupedInt) -> torch.Tensor:
    """Float32 data of every magnitude that the scales hold, zeros and whole groups of zeros included."""
    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), encoding.group * draw(st.integers(1, 3)))
    data = torch.randn(shape, generator=draw(generators())) * 2.0 ** draw(st.integers(-10, 10))
    data[data.abs() < draw(st.sampled_from([0.0, 0.5, 100.0]))] = 0
    return data


def type_of(tensor: torch.Tensor) -> TensorType:
    return TensorType(tensor.dtype, tuple(tensor.shape))


@given(st.data())
def test_error_is_half_a_step_except_where_codes_end(data: st.DataObject) -> None:
    """Above the largest code and, where a subnormal scale is rounded far down, below the most negative one."""
    encoding = data.draw(grouped())
    x = data.draw(weights(encoding))
    storage = encoding.encode(x)
    decoded = encoding.decode(storage, type_of(x))
    step = storage["scales"].to(torch.float64).repeat_interleave(encoding.group, -1)
    assert bool(step.isfinite().all())
    code = torch.where(step == 0, 0.0, x.double() / step)
    lowest, top = -encoding.zero, encoding.zero - 1
    rounding = 2.0**-23 * x.double().abs()  # a float32 scale times a code is rounded once
    inside = (code >= lowest - 0.5) & (code <= top + 0.5)
    error = (decoded.double() - x.double()).abs()
    assert bool((error <= step.abs() / 2 + rounding)[inside].all())
    end = code.clamp(lowest, top) * step
    assert bool(((decoded.double() - end).abs() <= 2.0**-23 * end.abs())[~inside].all())


@given(st.data())
def test_the_largest_of_a_group_takes_the_most_negative_code(data: st.DataObject) -> None:
    """The whole range is used: the peak is off by the rounding of its scale only, which is small but for subnormal ones."""
    encoding = data.draw(grouped())
    x = data.draw(weights(encoding)).unflatten(-1, (-1, encoding.group))
    storage = encoding.encode(x.flatten(-2))
    codes = encoding.unpack(storage["values"]).unflatten(-1, (-1, encoding.group))
    peak = x.abs().argmax(-1, keepdim=True)
    wanted = torch.where(x.gather(-1, peak) == 0, 0, -encoding.zero)
    scale = storage["scales"].unsqueeze(-1)
    got, largest = codes.gather(-1, peak), x.gather(-1, peak)
    exact = (scale.abs() >= torch.finfo(scale.dtype).tiny) | (largest == 0)
    assert torch.equal(got[exact], wanted.to(torch.int8)[exact])
    # A subnormal scale has few digits: the peak takes the nearest code that there is.
    nearest = (largest.double() / scale.double()).clamp(-encoding.zero, encoding.zero - 1)
    # The quotient is rounded once to float32 before it is rounded to a code.
    assert bool(((got.double() - nearest).abs() <= 0.5 + 2.0**-23 * nearest.abs())[~exact & (scale != 0)].all())


@given(st.data())
def test_encoding_what_was_decoded_changes_nothing(data: st.DataObject) -> None:
    encoding = data.draw(grouped())
    x = data.draw(weights(encoding)).double()
    once = encoding.decode(encoding.encode(x), type_of(x))
    assert torch.equal(encoding.decode(encoding.encode(once), type_of(x)), once)


@given(st.data())
def test_grouped_bytes_are_exact(data: st.DataObject) -> None:
    encoding = data.draw(grouped())
    x = data.draw(weights(encoding))
    storage = encoding.encode(x)
    layout = encoding.layout(type_of(x))
    assert {name: type_of(t) for name, t in storage.items()} == layout
    held = sum(t.numel() * t.element_size() for t in storage.values())
    scales = x.numel() // encoding.group * encoding.scale_dtype.itemsize
    assert encoding.nbytes(type_of(x)) == held == x.numel() * encoding.bits // 8 + scales


@given(st.data())
def test_packing_is_undone_by_unpacking(data: st.DataObject) -> None:
    encoding = data.draw(grouped())
    size = encoding.group * data.draw(st.integers(1, 3))
    codes = torch.randint(0, 1 << encoding.bits, (2, size), generator=data.draw(generators()), dtype=torch.uint8)
    packed = encoding.pack(codes)
    assert packed.shape == (2, size * encoding.bits // 8)
    assert torch.equal(encoding.unpack(packed).to(torch.int64) + encoding.zero, codes.to(torch.int64))
    first = sum(int(codes[0, lane]) << lane * encoding.bits for lane in range(8 // encoding.bits))
    assert int(packed[0, 0]) == first, "the lowest index lies in the lowest bits"


@given(grouped(), st.integers(1, 40))
def test_a_group_that_does_not_divide_is_refused(encoding: GroupedInt, size: int) -> None:
    type = TensorType(torch.float32, (2, size))
    if size % encoding.group == 0:
        assert set(encoding.layout(type)) == {"values", "scales"}
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
        ((3, 8, torch.float16), "3 bits are not supported"),
        ((4, 1, torch.float16), "does not fill whole bytes"),
        ((4, 0, torch.float16), "does not fill whole bytes"),
        ((4, 8, torch.float64), "float64 are not supported"),
    ],
)
def test_grouped_parameters_are_checked(arguments: tuple[int, int, torch.dtype], message: str) -> None:
    with pytest.raises(IRError, match=message):
        GroupedInt(*arguments)


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
