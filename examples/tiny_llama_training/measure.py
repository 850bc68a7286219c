"""Owns the measure of quality: bits per byte of a text, which models with different tokenizers can be compared by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Tally:
    """The sum of -log2 p over `tokens` predicted tokens in `windows` windows."""

    windows: int
    tokens: int
    bits: float


def split_windows(ids: Sequence[int], context: int, bos: int) -> list[list[int]]:
    """Cut `ids` into non-overlapping runs of `context - 1` tokens and put BOS before each; the last may be shorter.

    Every token of the text is predicted exactly once, with nothing before its window.
    """
    run = context - 1
    return [[bos, *ids[start : start + run]] for start in range(0, len(ids), run)]


@torch.no_grad()
def measure(model: LlamaForCausalLM, windows: Sequence[Sequence[int]]) -> Tally:
    """Sum the bits of all tokens but the first of each window, in the dtype of the model and in eval mode.

    The log-probabilities are summed in float64, so that the sum adds no rounding of its own.
    """
    model.eval()
    nats = 0.0
    tokens = 0
    for window in windows:
        ids = torch.tensor([window])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].double()
        chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])
        nats -= float(chosen.sum())
        tokens += len(window) - 1
    return Tally(len(windows), tokens, nats / math.log(2))
