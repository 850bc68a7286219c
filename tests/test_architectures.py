"""The main job on every architecture: the compiled artifact against transformers, with no code for any one of them.

The rule for numbers: what the artifact computes in float32 may differ from transformers' float64 by at most 4 times what
transformers' own float32 differs. The rule for tokens: greedy tokens are the same, or the two best logits at the first
difference are closer than that bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import planish
from planish.testing.architectures import CAUSAL, ENCODERS, VOCABULARY, in_both_precisions, save_random_model
from planish.testing.splits import assert_split_has_the_bits

pytestmark = [pytest.mark.full, pytest.mark.first]
NEW_TOKENS = 64
LATENT = {"deepseek_v3": 20 + 8}


@dataclass(frozen=True)
class Subject:
    """An architecture: transformers' model in both precisions, and the compiled artifact."""

    name: str
    single: Any
    double: Any
    compiled: Any


@pytest.fixture(scope="module", params=[*CAUSAL, *ENCODERS])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = save_random_model(request.param, tmp_path_factory.mktemp(request.param))
    single, double = in_both_precisions(request.param, folder)
    compiled = planish.build(planish.trace(folder), "host").load()
    return Subject(request.param, single, double, compiled)


def _batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows, the second with left padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (2, 23), generator=generator)
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[1, :9] = False
    return ids, mask


def _reference(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of each row read alone, so that padding has no say; an encoder sees its rows where they stand."""
    rows = torch.zeros(*ids.shape, VOCABULARY, dtype=torch.float64)
    if model.get_output_embeddings() is None:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.double()
    with torch.no_grad():
        for b in range(ids.shape[0]):
            rows[b, mask[b]] = model(input_ids=ids[b, mask[b]].unsqueeze(0)).logits[0].double()
    return rows


def _bound(subject: Subject, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, float]:
    exact, rounded = (_reference(m, ids, mask) for m in (subject.double, subject.single))
    return exact, 4 * float((exact - rounded)[mask].abs().max())


def test_logits_are_as_near_as_rounding_allows(subject: Subject) -> None:
    ids, mask = _batch(1)
    exact, bound = _bound(subject, ids, mask)
    named = {"input_ids": ids, "attention_mask": mask}
    if subject.name in ENCODERS:
        named["token_type_ids"] = torch.zeros_like(ids)
    result = subject.compiled(**named)
    logits = (result[0] if isinstance(result, tuple) else result).double()
    assert float((logits - exact)[mask].abs().max()) <= bound


def test_latent_attention_caches_its_latent(subject: Subject) -> None:
    """One state a layer, of the latent's rank and the shared rotary part, however many heads there are."""
    states = [state["type"] for state in subject.compiled.manifest.get("states", {}).values()]
    if subject.name in LATENT:
        assert states == [f"f32[B, C, 1, {LATENT[subject.name]}]"] * 2
    elif subject.name in CAUSAL:
        assert len(states) == 4 and not any(", 1, " in state for state in states)


def test_greedy_tokens_are_the_same(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    if subject.name in ENCODERS:
        pytest.skip("an encoder does not generate")
    ids, _ = _batch(2)
    prompt = ids[0].tolist()
    got = subject.compiled.generate_ids(prompt, max_new_tokens=NEW_TOKENS, stop_tokens=())
    assert len(got) == NEW_TOKENS
    whole = torch.tensor([[*prompt, *got]])
    exact, bound = _bound(subject, whole, torch.ones_like(whole, dtype=torch.bool))
    steps = exact[0, len(prompt) - 1 : -1]
    best = steps.topk(2).values
    ties = int((best[:, 0] - best[:, 1] < bound).sum())
    with capsys.disabled():
        print(
            f"\n{subject.name}: {ties} of {NEW_TOKENS} positions closer than {bound:.2g}, {len(set(got))} distinct tokens"
        )
    assert len(set(got)) >= 4, "the model repeats itself, so the test shows nothing"
    chosen = steps.gather(1, torch.tensor(got).unsqueeze(1))[:, 0]
    # Each token is the best one given what came before it, up to a tie within the bound.
    assert bool((best[:, 0] - chosen <= bound).all())


@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_has_the_bits_of_the_whole(subject: Subject, data: st.DataObject) -> None:
    """Ragged rows, read in up to four pieces; and the same rows behind left padding, by the traced forward."""
    if subject.name in ENCODERS:
        return
    lengths = data.draw(st.lists(st.integers(2, 20), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rows = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    whole = [subject.compiled.logits(row) for row in rows]

    cuts = sorted(data.draw(st.sets(st.integers(1, min(lengths) - 1), min_size=1, max_size=3)))
    assert_split_has_the_bits(subject.compiled.session(len(rows)), rows, cuts, whole)

    width = max(lengths) + data.draw(st.integers(0, 5))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :], mask[number, width - len(row) :] = torch.tensor(row), True
    exact, bound = _bound(subject, ids, mask)
    padded = subject.compiled(input_ids=ids, attention_mask=mask).double()
    assert float((padded - exact)[mask].abs().max()) <= bound
    for number, logits in enumerate(whole):
        distance = (torch.from_numpy(logits).double() - exact[number, mask[number]]).abs().max()
        assert float(distance) <= bound
