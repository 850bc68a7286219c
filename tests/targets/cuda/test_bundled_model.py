"""The bundled model's 4-bit artifact with the kernels of a GPU, run thread after thread: the rule of every artifact.

Float32 is taken twice, as for Arm and for the same reason (`tests/targets/arm/test_bundled_model.py`): an activation on the
edge between two of its codes falls to either side with the order of a sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import planish
from planish.codegen.build import build
from planish.targets.cuda.target import CudaOnHost
from planish.testing.bundled import hold_to_model

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PROMPT = (EXAMPLES / "tiny-llama" / "heldout.txt").read_text(encoding="utf-8")[:120]
NEW_TOKENS = 16

# By day every kernel by itself, and a small decoder with caches in few bits.
pytestmark = pytest.mark.nightly


def test_tokens_and_logits_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    traced = planish.trace(EXAMPLES / "tiny-llama", check=False)
    small = planish.prepare(planish.compress(traced, EXAMPLES / "recipes" / "w4.yaml", check=False), check=False)
    program: Any = build(small.module, CudaOnHost(), tokenizer=EXAMPLES / "tiny-llama").load()
    host: Any = planish.build(small, "host", check=False).load()
    figures = hold_to_model(small, program, host, PROMPT, NEW_TOKENS, distinct=3)
    with capsys.disabled():
        print(f"\n{figures}")
