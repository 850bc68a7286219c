"""The bundled model's 4-bit artifact on an emulated Arm machine, over RPC, in both builds.

The rule is that of every artifact: at most 4 times what float32 itself differs from float64. An activation that lies on
the edge between two of its codes falls to either side with the order of a sum, and what follows moves by far more than
rounding. So float32 is taken twice, in the interpreter's order of summation and in the host artifact's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import planish
from planish.codegen.runtime.language_model import LanguageModel
from planish.ir import InputError, Interpreter
from planish.model import Model
from planish.testing.emulated import BUILDS, machine, needs_arm

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PROMPT = (EXAMPLES / "tiny-llama" / "heldout.txt").read_text(encoding="utf-8")[:300]
NEW_TOKENS = 64

pytestmark = needs_arm


@dataclass(frozen=True)
class Subject:
    """The compressed model and its artifact for one build, opened on the emulated machine."""

    model: Model
    host: LanguageModel
    folder: Path
    program: LanguageModel


@pytest.fixture(scope="module")
def small() -> Model:
    model = planish.trace(EXAMPLES / "tiny-llama", check=False)
    return planish.prepare(planish.compress(model, EXAMPLES / "recipes" / "w4.yaml", check=False), check=False)


@pytest.fixture(scope="module", params=sorted(BUILDS))
def subject(
    request: pytest.FixtureRequest, small: Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    folder = planish.build(small, f"arm:{request.param}", check=False).save(tmp_path_factory.mktemp("arm") / "artifact")
    program: Any = planish.load(folder, device=machine(BUILDS[request.param]))
    host: Any = planish.build(small, "host", check=False).load()
    yield Subject(small, host, folder, program)


def _interpreted(model: Model, ids: list[int], *, promote: bool) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.bool)}
    return Interpreter(model.module, promote=promote).run("forward", inputs)[0][0].double()


def test_tokens_and_logits_are_those_of_the_model(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = subject.program.tokenizer.encode(PROMPT)
    new: Any = subject.program.generate_ids(prompt, max_new_tokens=NEW_TOKENS, stop_tokens=())
    whole = [*prompt, *new]
    exact, plain = (_interpreted(subject.model, whole, promote=p) for p in (True, False))
    logits, other = (torch.from_numpy(p.logits(whole)).double() for p in (subject.program, subject.host))
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
    assert len(set(new)) >= 4, "the model repeats itself, so the test shows nothing"


def test_this_machine_refuses_it(subject: Subject) -> None:
    with pytest.raises(InputError, match="compiled for a processor with dotprod"):
        planish.load(subject.folder)
