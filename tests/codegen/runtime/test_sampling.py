"""What may be drawn, how often, and that a seed decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.codegen.runtime.sampling import Sampler, Sampling
from planish.ir import InputError

LOGITS = np.array([[0.0, 2.0, -1.0, 2.0, 1.0], [3.0, -4.0, 0.5, 0.0, 1.0]], np.float32)


def softmax(logits: Any, temperature: float) -> Any:
    powers = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return powers / powers.sum()


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler(Sampling(), 2).choose(LOGITS) == [1, 0]


@given(st.floats(0.01, 1.0), st.floats(0.1, 10.0), st.integers(0, 1 << 40))
def test_only_the_likeliest_are_drawn(top_p: float, temperature: float, seed: int) -> None:
    chosen = Sampler(Sampling(temperature, top_p, seed), 2).choose(LOGITS)
    for token, logits in zip(chosen, LOGITS):
        probabilities = softmax(logits, temperature)
        # A token is kept while those before it have not reached top_p.
        assert float(probabilities[probabilities > probabilities[token]].sum()) < top_p


def test_draws_follow_the_probabilities() -> None:
    count = 4000
    sampler = Sampler(Sampling(temperature=2.0, seed=5), count)
    drawn = np.bincount(sampler.choose(np.repeat(LOGITS[:1], count, 0)), minlength=5) / count
    want = softmax(LOGITS[0], 2.0)
    # Five standard deviations of a frequency.
    assert bool((np.abs(drawn - want) <= 5 * np.sqrt(want * (1 - want) / count)).all())


def test_rows_draw_from_their_own_streams() -> None:
    sampling = Sampling(temperature=9.0, seed=11)
    alone, together = Sampler(sampling, 1), Sampler(sampling, 2)
    for _ in range(20):
        assert alone.choose(LOGITS[:1])[0] == together.choose(LOGITS)[0]


def test_tiny_temperatures_stay_finite() -> None:
    assert Sampler(Sampling(temperature=1e-300), 1).choose(LOGITS[1:]) == [0]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"seed": -1},
    ],
)
def test_senseless_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling(**options)  # type: ignore[arg-type]
