"""`planish.learn_rotations` on the bundled model, from its gains to a compiled program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import planish
from planish.ir import Interpreter
from planish.model import Model
from planish.passes.dead_code import DeadCode
from planish.passes.fold_norm_gains import FoldNormGains
from planish.passes.manager import PassManager
from planish.passes.quantize import Quantize
from planish.passes.quantize_activations import QuantizeActivations
from planish.rotations import RotationOptions
from planish.testing.tiny_decoder import tiny_decoder
from planish.testing.training import WIDE, one_thread
from planish.testing.training import batches as decoder_batches

BUNDLED = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama"


def batches() -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(3, 512, (1, 32), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}


def test_the_report_says_what_was_rotated_and_how() -> None:
    module, _ = PassManager([FoldNormGains(), DeadCode()], check=False).run(tiny_decoder(**WIDE))
    options = RotationOptions(steps=2, learning_rate=0.5, spaces="free")
    steps = [Quantize(group=8), QuantizeActivations(bits=4)]
    rotated = planish.learn_rotations(Model(module), decoder_batches(), passes=steps, options=options, check=True)
    (record,) = rotated.reports[-1].passes
    assert record.name == "learned-rotations" and record.contract == "exact" and record.outcome is not None
    assert record.options["steps"] == 2 and record.details["spaces rotated"] == 2 and rotated.recipe == ()
    assert planish.compress(rotated, steps, check=False).nbytes < rotated.nbytes / 2


@pytest.mark.full
def test_rotations_of_the_bundled_model(tmp_path: Path) -> None:
    model = planish.compress(planish.trace(BUNDLED, check=False), [FoldNormGains(), DeadCode()], check=False)
    steps = [Quantize(group="row"), QuantizeActivations(bits=4)]
    options, losses = RotationOptions(steps=2, distillation=1.0), list[float]()
    with one_thread():
        rotated = planish.learn_rotations(
            model,
            batches(),
            passes=steps,
            options=options,
            checkpoint=tmp_path / "run.safetensors",
            progress=lambda step, steps, loss: losses.append(loss),
        )
    # The stream and the values of six layers.
    assert rotated.reports[-1].passes[0].details["spaces rotated"] == 7 and len(losses) == 2
    small = planish.compress(rotated, steps, check=False)
    (batch,) = itertools.islice(batches(), 1)
    logits = [Interpreter(m.module, promote=True).run("forward", batch)[0] for m in (model, rotated, small)]
    # Matrices are orthogonal up to 1e-12, and there are two in front of and behind each of twelve sums.
    assert float((logits[0] - logits[1]).norm() / logits[0].norm()) < 1e-9
    assert 1e-3 < float((logits[0] - logits[2]).norm() / logits[0].norm()) < 0.5
    planish.build(small, check=False)
