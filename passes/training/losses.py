"""What training makes small: the loss of predicting the next token, and the divergence from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from planish.ir.errors import InputError

TOKENS, MASK = "input_ids", "attention_mask"
Outputs: TypeAlias = Mapping[str, torch.Tensor]
Loss: TypeAlias = Callable[[dict[str, torch.Tensor], Any], torch.Tensor]
"""(outputs by name, the batch as the data gave it) -> a scalar."""


def next_token_loss(outputs: Outputs, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The mean cross entropy, in nats, of each real token of `input_ids` [B, S] after a real one.

    Real are tokens where `attention_mask` holds, all of them without one. The first output is logits [B, S, V].

    Raises:
        InputError: when the model is no language model of that kind, or the batch has no token to predict.
    """
    logits, ids = first(outputs), inputs.get(TOKENS)
    if ids is None or ids.dim() != 2 or logits.dim() != 3 or logits.shape[:2] != ids.shape:
        given = ", ".join(f"{name} {list(t.shape)}" for name, t in inputs.items())
        raise InputError(
            f"the next token's loss needs input_ids [B, S] and logits [B, S, V], but the model makes {list(logits.shape)} "
            f"of {given}; give a loss of your own"
        )
    mask = inputs.get(MASK)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    counted = real[:, 1:] & real[:, :-1]
    if not bool(counted.any()):
        raise InputError(
            "a batch holds no real token after another real one, so there is nothing to predict; leave it out"
        )
    return F.cross_entropy(logits[:, :-1][counted], ids[:, 1:][counted])


def divergence(
    outputs: Outputs, teacher: Outputs, inputs: Mapping[str, torch.Tensor], temperature: float
) -> torch.Tensor:
    """T^2 times the mean over rows of KL(softmax(t / T) || softmax(s / T)), for the logits t of the teacher and s, in nats.

    Rows are those of the first output's last axis; where `attention_mask` has its leading axes, only real ones count.
    T^2 keeps the gradient's size from depending on T (Hinton et al., 2015).

    Raises:
        InputError: when the logits differ in shape.
    """
    student, wanted = first(outputs), first(teacher)
    if student.shape != wanted.shape:
        raise InputError(
            f"the teacher's logits are {list(wanted.shape)}, the model's {list(student.shape)}; take a teacher with the "
            f"same vocabulary"
        )
    log_p, log_q = (F.log_softmax(logits / temperature, -1) for logits in (wanted, student))
    rows = (log_p.exp() * (log_p - log_q)).sum(-1)
    mask = inputs.get(MASK)
    if mask is not None and mask.shape == rows.shape:
        rows = rows[mask != 0]
    return rows.mean() * temperature**2


def first(outputs: Outputs) -> torch.Tensor:
    """The first output."""
    return next(iter(outputs.values()))
