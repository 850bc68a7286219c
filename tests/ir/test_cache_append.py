"""Appends to a cache of few bits, on rows that every step of rounding is exact for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Encoding, Float8, GroupedInt
from planish.ir.ops import CacheAppend
from planish.testing.references import REFERENCES

SIZE, HEADS, CAPACITY = 6, 2, 5
ENCODINGS: list[Encoding] = [
    *(
        GroupedInt(bits, SIZE, scales, zeros)
        for bits in (4, 8)
        for scales in (torch.float16, torch.float32)
        for zeros in (False, True)
    ),
    Float8("row"),
]


@st.composite
def rows(draw: st.DrawFn, encoding: Encoding) -> list[float]:
    """A head's row of one token whose scale is a power of two, and whose elements are halves and quarters of steps."""
    if isinstance(encoding, Float8):
        # The largest float of eight bits, and what lies on and between smaller ones.
        first, low, high = 448.0, -448 * 1024, 448 * 1024
        elements = [draw(st.integers(low, high)) / 1024 for _ in range(SIZE - 1)]
    else:
        assert isinstance(encoding, GroupedInt)
        top = 2**encoding.bits - 1
        zero = draw(st.integers(0, top)) if encoding.zero_points else 2 ** (encoding.bits - 1)
        first, last = -float(zero), float(top - zero)
        elements = [draw(st.integers(4 * int(first), 4 * int(last))) / 4 for _ in range(SIZE - 1)]
        if encoding.zero_points:
            elements[0] = last
    unit = 2.0 ** draw(st.integers(-3, 3))
    return [x * unit for x in (first, *elements)]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@given(data=st.data())
def test_rows_are_written_as_their_encoding_holds_them(encoding: Encoding, data: st.DataObject) -> None:
    """Scales are powers of two, so that only the rounding of elements rounds: results are equal to the last bit."""
    batch, tokens = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    new = torch.tensor(
        [[[data.draw(rows(encoding)) for _ in range(HEADS)] for _ in range(tokens)] for _ in range(batch)]
    )
    cache = torch.arange(batch * CAPACITY * HEADS * SIZE, dtype=torch.float32).reshape(batch, CAPACITY, HEADS, SIZE)
    start = torch.tensor([data.draw(st.integers(0, CAPACITY - tokens)) for _ in range(batch)])
    length = torch.tensor([data.draw(st.integers(0, tokens)) for _ in range(batch)])
    op = CacheAppend(encoding)
    (result,) = op.evaluate(cache, new, start, length)
    (want,) = REFERENCES["cache_append"](op, *(t.double().numpy() for t in (cache, new)), start.numpy(), length.numpy())
    assert np.array_equal(result.double().numpy(), want)
