"""The rule for the bundled model on any target: logits near float64's, tokens that only ties may change."""

from __future__ import annotations

from typing import Any

import torch

from planish.ir import Interpreter
from planish.model import Model


def hold_to_model(model: Model, program: Any, host: Any, prompt: str, tokens: int, distinct: int) -> str:
    """Assert that a compiled model is the model; one line of figures.

    Greedy tokens are forced on the interpreter, in float32 and in float64. A logit may be off by four times what the
    interpreter's float32 or the host's code is off at most, and at half of the positions by four times the former: an
    activation on the edge between two codes is rare. A token may differ where two logits are closer than that.
    """
    ids = program.tokenizer.encode(prompt)
    new = program.generate_ids(ids, max_new_tokens=tokens, stop_tokens=())
    whole = [*ids, *new]
    exact, plain = (_interpreted(model, whole, promote=p) for p in (True, False))
    logits, other = (torch.from_numpy(p.logits(whole)).double() for p in (program, host))
    bound = 4 * max(float(_apart(rounded, exact).max()) for rounded in (plain, other))
    distance = _apart(logits, exact).amax(1)
    worst, sharp = float(distance.max()), 4 * float(_apart(plain, exact).max())
    steps = exact[len(ids) - 1 : -1]
    best = steps.topk(2).values
    ties = int((best[:, 0] - best[:, 1] < bound).sum())
    figures = f"{worst:.3g} from float64, allowed {bound:.3g}; {ties} of {tokens} positions closer than that"
    assert worst <= bound, figures
    assert float((distance <= sharp).double().mean()) >= 0.5, "codes on an edge are rare"
    chosen = steps.gather(1, torch.tensor(new).unsqueeze(1))[:, 0]
    assert bool((best[:, 0] - chosen <= bound).all()), figures
    assert len(set(new)) >= distinct, "the model repeats itself, so the test shows nothing"
    return figures


def _apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How far logits are from each other; those that are minus infinity in both are not."""
    return torch.where(a == b, 0.0, (a - b).abs())


def _interpreted(model: Model, ids: list[int], *, promote: bool) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.bool)}
    return Interpreter(model.module, promote=promote).run("forward", inputs)[0][0].double()
