"""Floats of four and eight bits: against vectors worked out by hand, torch's own rounding, and bounds on the error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import IRError, TensorType
from planish.ir.encodings.float_blocks import MAGNITUDES, Float8, MxFp4, NvFp4, e2m1_codes, e2m1_values
from planish.testing.tensors import generators

FIRST = [-1 + 0.25 * n for n in range(16)]
SECOND = [0.1, -0.1, 0.02, -0.02, 0.3, -0.3, 0.05, 0, 0.25, -0.25, 0.15, -0.15, 0.2, -0.2, 0.35, -0.35]
PACKED = "bc9a103254656677b391f702e6d5d5f7"
DECODED = [-0.916667, -0.6875, -0.458333, -0.229167, 0, 0.229167]


def type_of(tensor: torch.Tensor) -> TensorType:
    return TensorType(tensor.dtype, tuple(tensor.shape))


@st.composite
def weights(draw: st.DrawFn, multiple: int) -> torch.Tensor:
    shape = (draw(st.integers(1, 4)), multiple * draw(st.integers(1, 4)))
    data = torch.randn(shape, generator=draw(generators())) * 2.0 ** draw(st.integers(-20, 20))
    data[data.abs() < draw(st.sampled_from([0.0, 0.5, 1e9]))] = 0
    return data


def test_nvfp4_is_as_model_optimizer_encodes_it() -> None:
    """By the rule of the largest: both scales, every code and the first values of a vector computed apart from this code."""
    x = torch.tensor([FIRST + SECOND])
    storage = NvFp4().encode(x)
    assert storage["tensor_scale"].item() == pytest.approx(0.00102306553, rel=1e-8)
    assert storage["scales"].tolist() == [[0x7E, 0x66]]
    assert bytes(storage["values"][0].tolist()).hex() == PACKED
    decoded = NvFp4().decode(storage, type_of(x))[0]
    assert decoded[:6].tolist() == pytest.approx(DECODED, abs=1e-6)
    assert decoded[16:21].tolist() == pytest.approx([0.085938, -0.085938, 0.028646, -0.028646, 0.34375], abs=1e-6)


def test_ties_go_to_the_even_code() -> None:
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0], dtype=torch.float64)
    assert e2m1_values(e2m1_codes(middles)).tolist() == [0, 1, 1, 2, 2, 4, 4, 6]
    assert e2m1_codes(-middles).tolist() == [8, 10, 10, 12, 12, 14, 14, 15]
    every = torch.arange(16, dtype=torch.uint8)
    assert torch.equal(e2m1_codes(e2m1_values(every)), every)


@given(generators())
def test_codes_are_the_nearest(generator: torch.Generator) -> None:
    x = torch.randn(200, generator=generator, dtype=torch.float64) * 3
    grid = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], dtype=torch.float64)
    distance = (e2m1_values(e2m1_codes(x)) - x).abs()
    assert torch.equal(distance, (x[:, None] - grid).abs().amin(-1))


@given(st.data())
def test_four_over_six_is_never_worse_for_the_same_scales(data: st.DataObject) -> None:
    x = data.draw(weights(16))
    both = NvFp4().encode_four_over_six(x)
    assert {name: type_of(t) for name, t in both.items()} == NvFp4().layout(type_of(x))
    blocks, whole = NvFp4().blocks(x), NvFp4().tensor_scale(x, 256.0)
    six = {**NvFp4()._storage(blocks, NvFp4()._bits(blocks, whole, 6.0), whole), "tensor_scale": whole.float()}

    def error(storage: dict[str, torch.Tensor]) -> torch.Tensor:
        wide = TensorType(torch.float64, tuple(x.shape))
        return (NvFp4().decode(storage, wide) - x).square().unflatten(-1, (-1, 16)).sum(-1)

    assert bool((error(both) <= error(six) * (1 + 1e-12)).all())


def test_four_over_six_gains_on_gaussian_weights() -> None:
    """16 percent of the squared error of the plain rule, as its authors found."""
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    wide = TensorType(torch.float64, tuple(x.shape))
    plain, four = (NvFp4().decode(made, wide) for made in (NvFp4().encode(x), NvFp4().encode_four_over_six(x)))
    gain = ((four - x).square().sum() / (plain - x).square().sum()).item()
    assert 0.82 < gain < 0.86


@given(st.data())
def test_mxfp4_scales_are_powers_of_two_that_bring_the_largest_near(data: st.DataObject) -> None:
    x = data.draw(weights(32))
    storage = MxFp4().encode(x)
    assert {name: type_of(t) for name, t in storage.items()} == MxFp4().layout(type_of(x))
    scales = MxFp4().scales(storage)
    largest = x.double().unflatten(-1, (-1, 32)).abs().amax(-1)
    reached = largest / scales
    assert bool(((reached >= 4) & (reached < 8))[largest > 0].all())
    decoded = MxFp4().decode(storage, TensorType(torch.float64, tuple(x.shape)))
    # Steps are at most 2 wide, and 8 saturates to 6.
    error = (decoded - x.double()).abs().unflatten(-1, (-1, 32))
    assert bool((error <= 2 * scales.unsqueeze(-1)).all())


@given(st.data())
def test_float8_is_rounded_by_torch(data: st.DataObject) -> None:
    x = data.draw(weights(1))
    for encoding in (Float8("row"), Float8("tensor")):
        storage = encoding.encode(x)
        assert {name: type_of(t) for name, t in storage.items()} == encoding.layout(type_of(x))
        scales = storage["scales"].unsqueeze(-1) if encoding.scaled == "row" else storage["scales"]
        wanted = (x.double() / scales.double()).to(torch.float8_e4m3fn).double() * scales.double()
        assert torch.equal(encoding.decode(storage, TensorType(torch.float64, tuple(x.shape))), wanted)


def test_bytes_are_exact() -> None:
    type = TensorType(torch.float32, (6, 64))
    assert NvFp4().nbytes(type) == 6 * (32 + 4) + 4
    assert MxFp4().nbytes(type) == 6 * (32 + 2)
    assert Float8("row").nbytes(type) == 6 * 64 + 6 * 4
    assert Float8("tensor").nbytes(type) == 6 * 64 + 4


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(2, 32)
    for encoding in (NvFp4(), MxFp4(), Float8("row"), Float8("tensor")):
        assert torch.equal(encoding.decode(encoding.encode(x), type_of(x)), x)
    assert torch.equal(NvFp4().decode(NvFp4().encode_four_over_six(x), type_of(x)), x)


def test_blocks_must_divide() -> None:
    with pytest.raises(IRError, match="nvfp4 has blocks of 16 elements, which do not divide the last axis"):
        NvFp4().encode(torch.zeros(2, 24))
    with pytest.raises(IRError, match="mxfp4 has blocks of 32 elements"):
        MxFp4().encode(torch.zeros(2, 48))
    with pytest.raises(IRError, match="at least one axis"):
        Float8().encode(torch.zeros(()))
