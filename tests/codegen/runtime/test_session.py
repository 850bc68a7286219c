"""Rows of a session and the caches behind them, without a compiled program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.codegen.runtime.caches import FIRST_CAPACITY, Caches
from planish.codegen.runtime.device import LocalDevice
from planish.codegen.runtime.session import Session
from planish.ir import InputError

STATES = {"k": {"memory": "f32[B, 3, C, 2]"}, "v": {"memory": "i8[B, C, 5]"}}


@given(st.lists(st.integers(1, 700), min_size=1, max_size=4))
def test_growing_keeps_what_is_there(wanted: list[int]) -> None:
    caches = Caches(LocalDevice(), STATES, {"B": 2})
    filled: dict[str, Any] = {}
    for tokens in wanted:
        caches.reserve(tokens)
        assert caches.capacity >= max(tokens, FIRST_CAPACITY)
        assert caches.capacity & (caches.capacity - 1) == 0
        assert caches.tensors["k"].shape == (2, 3, caches.capacity, 2)
        assert caches.tensors["v"].shape == (2, caches.capacity, 5)
        here = {name: np.from_dlpack(tensor) for name, tensor in caches.tensors.items()}
        for name, old in filled.items():
            now = here[name]
            assert np.array_equal(now[tuple(slice(0, n) for n in old.shape)], old)
            assert np.count_nonzero(now) == np.count_nonzero(old)
        for tensor in here.values():
            tensor[...] = np.arange(tensor.size).reshape(tensor.shape) % 7 + 1
        filled = {name: t.copy() for name, t in here.items()}
    assert caches.nbytes == 2 * caches.capacity * (3 * 2 * 4 + 5)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([[1, 2], []], "row 1 is empty: a model needs at least one token"),
        ([[1] * 9, [1]], "row 0 would have 9 tokens, but the context of this model holds 8; shorten the prompt"),
        ([[1]], "this session has 2 rows, but 1 were given"),
    ],
)
def test_rows_that_cannot_be_read(rows: list[list[int]], sentence: str) -> None:
    session = Session(LocalDevice(), {}, STATES, batch=2, context=8)
    with pytest.raises(InputError, match=sentence):
        session.read(rows)
    assert session.lengths == [0, 0]
