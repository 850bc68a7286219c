"""Bits per byte of a text: how well a model predicts it, comparable between tokenizers.

The window rule: the text's tokens are cut into non-overlapping runs of context - 1 tokens, each preceded by the
beginning-of-sequence token; every token of the text is predicted exactly once, from its own window only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from planish.ir import InputError

Logits = Callable[[Sequence[int]], "torch.Tensor"]
"""ids -> float logits [len(ids), vocabulary]."""


@dataclass(frozen=True)
class BitsPerByte:
    """The sum of -log2 p over `tokens` predicted tokens, and the bytes of text that they spell."""

    bits: float
    tokens: int
    bytes: int

    @property
    def value(self) -> float:
        return self.bits / self.bytes


def windows(ids: Sequence[int], context: int, first: int) -> list[list[int]]:
    """The window rule: runs of `context - 1` tokens, each after the token `first`."""
    run = context - 1
    return [[first, *ids[start : start + run]] for start in range(0, len(ids), run)]


def bits_per_byte(
    logits: Logits,
    ids: Sequence[int],
    spell: Callable[[Sequence[int]], str],
    *,
    context: int,
    first: int,
    limit: int | None = None,
) -> BitsPerByte:
    """Measure over the first `limit` windows (all of them by default).

    Args:
        logits: the model, called once a window.
        ids: the whole text's tokens, without special ones.
        spell: text of a run of tokens, to count its UTF-8 bytes.
        context: tokens in a window, the first one included.
        first: the token that starts each window.
        limit: how many windows to measure.

    Raises:
        InputError: when the text has no tokens, or a window holds none of them.
    """
    if context < 2:
        raise InputError(f"a window of {context} tokens predicts nothing; it needs at least 2")
    if not ids:
        raise InputError("the text has no tokens, so there are no bits per byte")
    nats, tokens, spelt = 0.0, 0, 0
    for window in windows(ids, context, first)[:limit]:
        scores = torch.as_tensor(logits(window[:-1])).to(torch.float64)
        targets = torch.tensor(window[1:])
        nats -= float(torch.log_softmax(scores, -1).gather(1, targets.unsqueeze(1)).sum())
        tokens += len(targets)
        spelt += len(spell(window[1:]).encode())
    return BitsPerByte(nats / math.log(2), tokens, spelt)
