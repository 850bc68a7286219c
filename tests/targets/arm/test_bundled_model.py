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

import planish
from planish.codegen.runtime.language_model import LanguageModel
from planish.ir import InputError
from planish.model import Model
from planish.testing.bundled import hold_to_model
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


# The build with products of matrices has those of rows too: the other one waits for the night.
BY_DAY = "generic+i8mm"


@pytest.fixture(
    scope="module", params=[b if b == BY_DAY else pytest.param(b, marks=pytest.mark.nightly) for b in sorted(BUILDS)]
)
def subject(
    request: pytest.FixtureRequest, small: Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    folder = planish.build(small, f"arm:{request.param}", check=False).save(tmp_path_factory.mktemp("arm") / "artifact")
    program: Any = planish.load(folder, device=machine(BUILDS[request.param]))
    host: Any = planish.build(small, "host", check=False).load()
    yield Subject(small, host, folder, program)


def test_tokens_and_logits_are_those_of_the_model(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    figures = hold_to_model(subject.model, subject.program, subject.host, PROMPT, NEW_TOKENS, distinct=4)
    with capsys.disabled():
        print(f"\n{figures}")


def test_this_machine_refuses_it(subject: Subject) -> None:
    with pytest.raises(InputError, match="compiled for a processor with dotprod"):
        planish.load(subject.folder)
