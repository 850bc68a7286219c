"""The options of training: the learning rate they describe, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import InputError
from planish.passes.training import TrainingOptions


@given(st.integers(1, 50), st.integers(0, 49), st.floats(1e-6, 1.0))
def test_the_schedule_is_transformers(steps: int, warmup: int, peak: float) -> None:
    if warmup >= steps:
        with pytest.raises(InputError, match=f"a warmup of {warmup} steps leaves none of {steps} to train"):
            TrainingOptions(steps=steps, warmup=warmup)
        return
    made = TrainingOptions(steps=steps, warmup=warmup, learning_rate=peak)
    peer = transformers.get_cosine_schedule_with_warmup(torch.optim.SGD([torch.zeros(1)], lr=peak), warmup, steps)
    for step in range(steps):
        # Near the end 1 + cos cancels: it is off by roundings of 1.
        assert math.isclose(made.learning_rate_at(step), peer.get_last_lr()[0], rel_tol=1e-12, abs_tol=peak * 2.0**-50)
        peer.optimizer.step()
        peer.step()


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({}, r"the options of training do not fit: Field required \(steps\)"),
        ({"steps": 0}, "option 'steps' of training is 0: Input should be greater than or equal to 1"),
        ({"steps": 2.0}, "option 'steps' of training is 2.0: Input should be a valid integer"),
        ({"steps": "3"}, "option 'steps' of training is '3': Input should be a valid integer"),
        ({"steps": 3, "learning_rate": 0.0}, "option 'learning_rate' of training is 0.0"),
        ({"steps": 3, "learning_rate": math.nan}, "option 'learning_rate' of training is nan"),
        ({"steps": 3, "clip": -1.0}, "option 'clip' of training is -1.0"),
        ({"steps": 3, "distillation": 1.5}, "option 'distillation' of training is 1.5"),
        ({"steps": 3, "temperature": 0.0}, "option 'temperature' of training is 0.0"),
        ({"steps": 3, "activations": "int9"}, "option 'activations' of training is 'int9'"),
        ({"steps": 3, "learnig_rate": 0.1}, "training has no option 'learnig_rate'; did you mean 'learning_rate'?"),
        ({"steps": 3, "warmup": 3}, "a warmup of 3 steps leaves none of 3 to train; shorten it"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TrainingOptions(**given)
