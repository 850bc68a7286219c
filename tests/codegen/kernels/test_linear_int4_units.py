"""The units that scales of a 4-bit weight are counted in where they go into the weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.codegen.kernels.blocks.linear_int4_packing import units_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@st.composite
def rows_of_scales(draw: st.DrawFn) -> torch.Tensor:
    """Rows of scales of both signs, of one dtype, from the smallest normal float16 to 2^12, unlike or alike in size."""
    numbers = st.floats(2**-14, 2**12, width=16)
    row = st.lists(st.builds(lambda size, sign: size * sign, numbers, st.sampled_from((-1, 1))), min_size=3, max_size=3)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=5))).to(draw(st.sampled_from(DTYPES)))


@given(rows_of_scales())
def test_products_with_the_largest_weights_have_sixteen_bits(scales: torch.Tensor) -> None:
    units = units_of(scales)
    counts = (scales.double() / units.double()[:, None]).round()
    largest = counts.abs().amax(1)
    assert bool(((largest >= 2047) & (largest <= 4095)).all())
    assert bool((torch.frexp(units)[0] == 0.5).all())


@given(rows_of_scales())
def test_large_scales_of_sixteen_bits_are_whole_units(scales: torch.Tensor) -> None:
    counts = scales.double() / units_of(scales).double()[:, None]
    whole = counts == counts.round()
    assert bool((whole | (counts.abs() < 1024)).all()) or scales.dtype == torch.float32


@pytest.mark.parametrize("largest", [4095 / 4096, 8191 / 8192, 1 - 2**-24])
def test_none_is_rounded_up_to_a_bit_more(largest: float) -> None:
    scales = torch.tensor([[-largest, 0.25]])
    assert (scales / units_of(scales)).round().abs().max() <= 4095


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_has_no_unit(number: float) -> None:
    assert units_of(torch.tensor([[1.0, number], [1.0, 2.0]])).isnan().tolist() == [True, False]


def test_rows_of_zeros_have_a_unit() -> None:
    assert bool(units_of(torch.zeros(2, 3)).isfinite().all())
