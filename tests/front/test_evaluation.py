"""Bits per byte: the window rule, and values known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.evaluation import bits_per_byte, windows
from planish.ir import InputError

FIRST = 99


def spell(ids: Sequence[int]) -> str:
    return "".join("aé"[i % 2] for i in ids)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(2, 9))
def test_every_token_is_predicted_once(ids: list[int], context: int) -> None:
    cut = windows(ids, context, FIRST)
    assert [token for window in cut for token in window[1:]] == ids
    assert all(window[0] == FIRST and 2 <= len(window) <= context for window in cut)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=40), st.integers(2, 9))
def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(ids: list[int], context: int) -> None:
    found = bits_per_byte(lambda read: torch.zeros(len(read), 8), ids, spell, context=context, first=FIRST)
    assert found.tokens == len(ids)
    assert found.bytes == sum(1 + i % 2 for i in ids)
    assert math.isclose(found.bits, 3 * len(ids))
    assert math.isclose(found.value, 3 * len(ids) / found.bytes)


def test_a_model_that_knows_everything_needs_none() -> None:
    ids = [3, 1, 4, 1, 5, 2, 6]

    def logits(read: Sequence[int]) -> torch.Tensor:
        # Its window tells which run of the text this is.
        start = 0 if len(read) == 4 else 4
        return torch.nn.functional.one_hot(torch.tensor(ids[start : start + len(read)]), 8) * 1e9

    assert bits_per_byte(logits, ids, spell, context=5, first=FIRST).bits == 0
    assert bits_per_byte(logits, ids, spell, context=5, first=FIRST, limit=1).tokens == 4


def test_refused() -> None:
    with pytest.raises(InputError, match="the text has no tokens"):
        bits_per_byte(lambda read: torch.zeros(0, 8), [], spell, context=5, first=FIRST)
    with pytest.raises(InputError, match="a window of 1 tokens predicts nothing"):
        bits_per_byte(lambda read: torch.zeros(0, 8), [1], spell, context=1, first=FIRST)
