"""The law of splits on compiled programs, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_split_has_the_bits(session: Any, rows: list[list[int]], cuts: list[int], whole: list[Any]) -> None:
    """Read `rows` into a fresh session in pieces that end at `cuts`: logits must be those of the `whole` rows' tokens."""
    last = session.read([row[: cuts[0]] for row in rows])
    for begin, end in zip(cuts, [*cuts[1:], None]):
        for row, logits in enumerate(whole):
            assert np.array_equal(last[row], logits[begin - 1])
        rest = session.read_all([row[begin:end] for row in rows])
        last = [logits[-1] for logits in rest]
        for row, logits in enumerate(whole):
            assert np.array_equal(rest[row], logits[begin:end])
