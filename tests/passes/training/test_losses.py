"""The losses of training, against torch's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from planish.ir import InputError
from planish.passes.training.losses import divergence, next_token_loss
from planish.testing.training import VOCABULARY, batches


def test_the_loss_is_the_cross_entropy_of_real_tokens() -> None:
    batch = next(batches())
    logits = torch.randn(4, 9, VOCABULARY, generator=torch.Generator().manual_seed(0))
    rows = [
        F.cross_entropy(logits[b, s], batch["input_ids"][b, s + 1])
        for b in range(4)
        for s in range(8)
        if batch["attention_mask"][b, s] and batch["attention_mask"][b, s + 1]
    ]
    assert len(rows) == 29
    got = next_token_loss({"logits": logits.double()}, batch)
    assert math.isclose(float(got), float(torch.stack(rows).double().mean()), rel_tol=1e-6)


def test_the_divergence_is_torchs() -> None:
    batch = next(batches())
    student, teacher = torch.randn(2, 4, 9, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real = batch["attention_mask"]
    expected = 4 * F.kl_div(
        F.log_softmax(student[real] / 2, -1),
        F.log_softmax(teacher[real] / 2, -1),
        log_target=True,
        reduction="batchmean",
    )
    got = divergence({"logits": student}, {"logits": teacher}, batch, 2.0)
    assert math.isclose(float(got), float(expected), rel_tol=1e-12)
    assert float(divergence({"logits": student}, {"logits": student}, batch, 2.0)) == 0


def test_a_model_of_another_kind_needs_its_own_loss() -> None:
    with pytest.raises(InputError, match=r"makes \[4, 6\] of x \[4, 6\]; give a loss of your own"):
        next_token_loss({"y": torch.zeros(4, 6)}, {"x": torch.zeros(4, 6)})
