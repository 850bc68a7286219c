"""Owns the measure of quality: bits per byte of a text, which models with different tokenizers can be compared by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from planish.evaluation import windows as split_windows


@dataclass(frozen=True)
class Tally:
    """The sum of -log2 p over `tokens` predicted tokens in `windows` windows."""

    windows: int
    tokens: int
    bits: float


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


__all__ = ["Tally", "measure", "split_windows"]
