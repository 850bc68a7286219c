"""The main job for models with an encoder: a source read once, then a text written token by token.

The rules are those of `test_architectures`: numbers as near to transformers' float64 as four times its own float32 is,
the same greedy tokens up to ties, and the same bits however a text is cut into calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import planish
from planish.codegen.runtime.encoder_decoder import EncoderDecoder
from planish.ir import InputError, UnsupportedError
from planish.testing.architectures import SEQUENCE_TO_SEQUENCE, VOCABULARY, in_both_precisions, save_random_model
from planish.testing.splits import assert_split_has_the_bits

pytestmark = [pytest.mark.full, pytest.mark.first]
START, NEW_TOKENS = 2, 64
# They differ in a scale of the embedding; the other one waits for the night.
BY_DAY = "pegasus"


@dataclass(frozen=True)
class Subject:
    """An architecture: transformers' model in both precisions, and the compiled artifact."""

    name: str
    single: Any
    double: Any
    compiled: EncoderDecoder


@pytest.fixture(
    scope="module",
    params=[n if n == BY_DAY else pytest.param(n, marks=pytest.mark.nightly) for n in SEQUENCE_TO_SEQUENCE],
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = save_random_model(request.param, tmp_path_factory.mktemp(request.param))
    single, double = in_both_precisions(request.param, folder)
    compiled = planish.build(planish.trace(folder), "host").load()
    assert isinstance(compiled, EncoderDecoder)
    return Subject(request.param, single, double, compiled)


def _ids(seed: int, *lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def _reference(model: Any, source: list[int], ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        result = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids]))
    return result.logits[0].double()


def _bound(subject: Subject, source: list[int], ids: list[int]) -> tuple[torch.Tensor, float]:
    exact, rounded = (_reference(m, source, ids) for m in (subject.double, subject.single))
    return exact, 4 * float((exact - rounded).abs().max())


def test_logits_are_as_near_as_rounding_allows(subject: Subject) -> None:
    """The traced forward on sources padded to one length, and the derived programs."""
    sources, texts = _ids(1, 12, 7), _ids(2, 9, 9)
    read = torch.zeros(2, 12, dtype=torch.int64)
    for row, source in enumerate(sources):
        read[row, : len(source)] = torch.tensor(source)
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    whole = subject.compiled(input_ids=read, attention_mask=mask, decoder_input_ids=torch.tensor(texts)).double()
    for row, (source, text) in enumerate(zip(sources, texts)):
        exact, bound = _bound(subject, source, text)
        assert float((whole[row] - exact).abs().max()) <= bound
        derived = torch.from_numpy(subject.compiled.logits(text, source)).double()
        assert float((derived - exact).abs().max()) <= bound


def test_greedy_tokens_are_the_same(subject: Subject) -> None:
    source, other = _ids(3, 15, 4)
    got = subject.compiled.generate_ids(source, max_new_tokens=NEW_TOKENS, stop_tokens=())
    assert len(got) == NEW_TOKENS and len(set(got)) >= 4
    exact, bound = _bound(subject, source, [START, *got[:-1]])
    chosen = exact.gather(1, torch.tensor(got).unsqueeze(1))[:, 0]
    assert bool((exact.max(-1).values - chosen <= bound).all())
    together = subject.compiled.generate_ids([source, other], max_new_tokens=8, stop_tokens=())
    assert together[0] == got[:8]
    assert together[1] == subject.compiled.generate_ids(other, max_new_tokens=8, stop_tokens=())


@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_has_the_bits_of_the_whole(subject: Subject, data: st.DataObject) -> None:
    """Ragged sources and texts, the texts read in up to four pieces."""
    lengths = data.draw(st.lists(st.tuples(st.integers(1, 20), st.integers(2, 20)), min_size=1, max_size=3))
    seed = data.draw(st.integers(0, 99))
    sources, texts = _ids(seed, *(s for s, _ in lengths)), _ids(seed + 100, *(t for _, t in lengths))
    whole = [subject.compiled.logits(text, source) for text, source in zip(texts, sources)]
    cuts = sorted(data.draw(st.sets(st.integers(1, min(t for _, t in lengths) - 1), min_size=1, max_size=3)))
    session = subject.compiled.session(len(texts))
    session.encode(sources)
    assert_split_has_the_bits(session, texts, cuts, whole)


def test_the_encoder_is_read_once(subject: Subject) -> None:
    """What `encode` wrote is read by `decode` and not written, and no weight of the encoder is read again."""
    functions = subject.compiled.manifest["functions"]
    written = set(functions["encode"]["updates"])
    assert written and written < set(functions["decode"]["states"])
    assert written.isdisjoint(functions["decode"]["updates"])
    shared = set(functions["encode"]["weights"]) & set(functions["decode"]["weights"])
    assert not any(".layers." in weight for weight in shared)


def test_bad_input(subject: Subject) -> None:
    with pytest.raises(InputError, match="needs a source to write from"):
        subject.compiled.logits([1, 2])
    with pytest.raises(InputError, match="the source of row 1 is empty"):
        subject.compiled.session(2).encode([[1], []])
    with pytest.raises(InputError, match="outside the vocabulary"):
        subject.compiled.generate_ids([VOCABULARY])
    with pytest.raises(InputError, match="T is 300 in these tensors, but encode was traced for 1 to 256"):
        subject.compiled.session().encode([[5] * 300])


def test_relative_positions_are_refused_by_name(tmp_path: Path) -> None:
    """T5 adds a learned bias for each distance, which no mask describes."""
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"attention at .* has a bias tensor over positions"):
        planish.build(planish.trace(tmp_path, check=False), "host", check=False)
