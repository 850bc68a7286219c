"""Pruning an output head: what stays scores what it scored, the rest is never said, and tables stay whole."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import planish
from planish.ir import InputError, Interpreter, Module
from planish.passes.derive_programs import DerivePrograms
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, PassError
from planish.passes.prune_vocabulary import PruneVocabulary
from planish.testing.architectures import traced_architecture

TOKENS = (5, 2, 96, 17, 17)


@pytest.mark.full
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt"])
@pytest.mark.parametrize("derived", [False, True])
def test_what_stays_scores_what_it_scored(name: str, derived: bool) -> None:
    """Tied (Gemma 2 behind a soft cap, GPT-2, OPT) and not; before programs are derived and after."""
    module = traced_architecture(name)
    if derived:
        module = DerivePrograms().apply(module, Context()).module
    result, report = PassManager([PruneVocabulary(tokens=TOKENS)]).run(module)
    assert report.passes[0].details == {"words before": 97, "words after": 4}
    assert report.passes[0].contract == "refines(5 indices of logits)"
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs = {
        v.name: ids if v.name == "input_ids" else torch.ones(2, 7, dtype=v.type.dtype)
        for v in module.functions["forward"].inputs
    }
    want, got = (Interpreter(m).run("forward", inputs).outputs["logits"] for m in (module, result))
    kept = sorted(set(TOKENS))
    assert torch.allclose(got[..., kept], want[..., kept], rtol=1e-5, atol=1e-6)
    others = torch.ones(97, dtype=torch.bool)
    others[kept] = False
    assert bool((got[..., others] == -torch.inf).all())
    tables = [p for n, p in result.params.items() if p.type.rank == 2 and p.type.shape[0] == 97]
    heads = [p for n, p in result.params.items() if p.type.shape == (4, 64)]
    assert len(tables) == len(heads) == 1
    # Every program says the same few words.
    assert {f.outputs[f.output_names.index("logits")].type.shape[-1] for f in result.functions.values()} == {97}


class Head(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.map = kind, nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.map(x)
        return {"logits": y.softmax(-1) if self.kind == "softmax" else y.cumsum(-1) if self.kind == "sums" else y}


def headed(kind: str = "plain") -> Module:
    return planish.trace(Head(kind), (torch.randn(2, 3),), check=False).module


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("plain", {"tokens": (6,)}, "there is no word 6: 'logits' has 6"),
        ("plain", {"tokens": (1,), "output": "scores"}, "from the output 'scores': there is none; outputs are logits"),
        ("softmax", {"tokens": (1,)}, "softmax.int: what it makes of the others depends on how many there are"),
        ("sums", {"tokens": (1,)}, "cumsum.default: it declares nothing about its indices"),
    ],
)
def test_refusals(kind: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        PruneVocabulary(**options).apply(headed(kind), Context())  # type: ignore[arg-type]


def test_all_words_are_no_change() -> None:
    assert PruneVocabulary(tokens=tuple(range(6))).apply(headed(), Context()).matches == 0
    assert PruneVocabulary().apply(headed(), Context()).matches == 0


class Wrong(PruneVocabulary):
    """Says that it keeps one word more than it does."""

    def apply(self, module, context):  # type: ignore[no-untyped-def]
        return PruneVocabulary(tokens=self.tokens[:-1]).apply(module, context)


def test_a_word_that_is_missing_breaks_the_contract() -> None:
    PassManager([PruneVocabulary(tokens=(1, 4))]).run(headed())
    with pytest.raises(PassError, match="breaks its contract"):
        PassManager([Wrong(tokens=(1, 4))], reproduce=False).run(headed())
