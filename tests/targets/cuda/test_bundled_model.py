"""The bundled model's 4-bit artifact with the kernels of a GPU, run thread after thread: the rule of every artifact.

Float32 is taken twice, as for Arm and for the same reason (`tests/targets/arm/test_bundled_model.py`): an activation on the
edge between two of its codes falls to either side with the order of a sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import planish
from planish.codegen.build import build
from planish.ir import Interpreter
from planish.model import Model
from planish.targets.cuda.target import CudaOnHost

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PROMPT = (EXAMPLES / "tiny-llama" / "heldout.txt").read_text(encoding="utf-8")[:120]
NEW_TOKENS = 16

pytestmark = pytest.mark.full


def _interpreted(model: Model, ids: list[int], *, promote: bool) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.bool)}
    return Interpreter(model.module, promote=promote).run("forward", inputs)[0][0].double()


def test_tokens_and_logits_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    traced = planish.trace(EXAMPLES / "tiny-llama", check=False)
    small = planish.prepare(planish.compress(traced, EXAMPLES / "recipes" / "w4.yaml", check=False), check=False)
    program: Any = build(small.module, CudaOnHost(), tokenizer=EXAMPLES / "tiny-llama").load()
    host: Any = planish.build(small, "host", check=False).load()
    prompt = program.tokenizer.encode(PROMPT)
    new: Any = program.generate_ids(prompt, max_new_tokens=NEW_TOKENS, stop_tokens=())
    whole = [*prompt, *new]
    exact, plain = (_interpreted(small, whole, promote=p) for p in (True, False))
    logits, other = (torch.from_numpy(p.logits(whole)).double() for p in (program, host))
    bound = 4 * max(float((rounded - exact).abs().max()) for rounded in (plain, other))
    distance = (logits - exact).abs().amax(1)
    worst, sharp = float(distance.max()), 4 * float((plain - exact).abs().max())
    steps = exact[len(prompt) - 1 : -1]
    best = steps.topk(2).values
    ties = int((best[:, 0] - best[:, 1] < bound).sum())
    with capsys.disabled():
        print(f"\n{worst:.3g} from float64, allowed {bound:.3g}; {ties} of {NEW_TOKENS} positions closer than that")
    assert worst <= bound
    assert float((distance <= sharp).double().mean()) >= 0.5, "codes on an edge are rare"
    chosen = steps.gather(1, torch.tensor(new).unsqueeze(1))[:, 0]
    assert bool((best[:, 0] - chosen <= bound).all())
    assert len(set(new)) >= 3, "the model repeats itself, so the test shows nothing"
