"""Choosing the next token of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.codegen.runtime.errors import input_error


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_p: tokens are drawn from the likeliest ones whose probabilities sum to at least this.
        seed: of the draws. Row b of a batch draws from its own stream, so that its tokens do not depend on the others.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise input_error(f"the temperature must be a number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise input_error(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.seed < 1 << 63:
            raise input_error(f"the seed must be at least 0 and below 2^63, got {self.seed}")


class Sampler:
    """The choices of one generation."""

    def __init__(self, sampling: Sampling, batch: int) -> None:
        self.sampling = sampling
        self._streams = [np.random.Generator(np.random.PCG64(sampling.seed + row)) for row in range(batch)]

    def choose(self, logits: Any) -> list[int]:
        """One token for each row of logits [batch, vocabulary]; the lowest index wins a tie."""
        if self.sampling.temperature == 0:
            return [int(token) for token in logits.argmax(-1)]
        return [self._draw(row, stream) for row, stream in zip(logits, self._streams)]

    def _draw(self, logits: Any, stream: np.random.Generator) -> int:
        # The largest is taken away first: a temperature near 0 must not make infinities.
        with np.errstate(over="ignore", under="ignore"):
            powers = np.exp((logits.astype(np.float64) - logits.max()) / self.sampling.temperature)
        tokens = np.argsort(-powers, kind="stable")
        likeliest = powers[tokens] / powers.sum()
        before = likeliest.cumsum() - likeliest
        kept = np.where(before < self.sampling.top_p, likeliest, 0.0)
        reached = kept.cumsum()
        # The first token whose cumulated probability exceeds the draw; one of probability zero never does.
        place = int(np.searchsorted(reached, stream.random() * reached[-1], side="right"))
        return int(tokens[min(place, int(np.flatnonzero(kept)[-1]))])
