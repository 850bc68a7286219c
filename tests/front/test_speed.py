"""Speed counts what it says: prompt tokens, then new ones; a clock that ticks makes the figures exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from planish import speed
from planish.ir import InputError


class Ticking:
    """A model that needs 2 s to read a prompt and 0.25 s for each later token."""

    def __init__(self) -> None:
        self.now, self.metadata = 0.0, {"vocab_size": 11, "context_length": 64}

    def stream_ids(self, ids: list[int], *, max_new_tokens: int, stop_tokens: tuple[int, ...]) -> Iterator[int]:
        assert all(0 <= i < 11 for i in ids) and stop_tokens == ()
        self.now += 2
        yield 0
        for _ in range(max_new_tokens - 1):
            self.now += 0.25
            yield 0


def test_tokens_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Ticking()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: model.now)
    found = speed.measure_speed(cast(Any, model), prompt=40, tokens=9, repeats=3)
    assert found == {"prefill": 20.0, "decode": 4.0}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": 60, "tokens": 5}, "a prompt of 60 tokens and 5 new ones exceed the context of this model, 64"),
        ({"prompt": 0}, "at least 1 token"),
        ({"tokens": 1}, "2 tokens to write"),
        ({"repeats": 0}, "1 repeat"),
    ],
)
def test_refused(options: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        speed.measure_speed(cast(Any, Ticking()), **options)
