"""Bits per byte, perplexity and divergence: the window rule, values known in closed form, and peers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import planish
from planish import evaluation
from planish.codegen.runtime.tokenizer import Tokenizer
from planish.evaluation import BitsPerByte, Divergence, bits_per_byte, compare, divergence, evaluate, windows
from planish.ir import InputError
from planish.testing.architectures import VOCABULARY

FIRST = 99
BUNDLED = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama"
Model = Callable[[Sequence[int]], torch.Tensor]


def spell(ids: Sequence[int]) -> str:
    return "".join("aé"[i % 2] for i in ids)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(2, 9))
def test_every_token_is_predicted_once(ids: list[int], context: int) -> None:
    cut = windows(ids, context, FIRST)
    assert [token for window in cut for token in window[1:]] == ids
    assert all(window[0] == FIRST and 2 <= len(window) <= context for window in cut)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=40), st.integers(2, 9))
def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(ids: list[int], context: int) -> None:
    found = bits_per_byte(lambda read: torch.zeros(len(read), 8), ids, spell, context=context, first=FIRST)
    assert found.tokens == len(ids)
    assert found.bytes == sum(1 + i % 2 for i in ids)
    assert math.isclose(found.bits, 3 * len(ids))
    assert math.isclose(found.value, 3 * len(ids) / found.bytes)


def test_a_model_that_knows_everything_needs_none() -> None:
    ids = [3, 1, 4, 1, 5, 2, 6]

    def logits(read: Sequence[int]) -> torch.Tensor:
        # Its window tells which run of the text this is.
        start = 0 if len(read) == 4 else 4
        return torch.nn.functional.one_hot(torch.tensor(ids[start : start + len(read)]), 8) * 1e9

    assert bits_per_byte(logits, ids, spell, context=5, first=FIRST).bits == 0
    assert bits_per_byte(logits, ids, spell, context=5, first=FIRST, limit=1).tokens == 4


def test_a_character_of_two_windows_counts_once() -> None:
    """Its bytes are two tokens; spelt apart, each of them would be a replacement character of three bytes."""
    found = bits_per_byte(
        lambda read: torch.zeros(len(read), 256),
        list("é".encode()),
        lambda run: bytes(run).decode(errors="replace"),
        context=2,
        first=FIRST,
    )
    assert found == BitsPerByte(found.bits, tokens=2, bytes=2)


def test_perplexity() -> None:
    assert BitsPerByte(bits=6.0, tokens=2, bytes=5).perplexity == 8
    assert BitsPerByte(bits=5000.0, tokens=2, bytes=5).perplexity == math.inf


def drawn(seed: int, vocabulary: int, scale: float) -> Model:
    """Logits that depend on every token of the window so far."""

    def logits(read: Sequence[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(FIRST + 1, vocabulary, generator=generator) * scale
        return table[torch.tensor(list(read))].cumsum(0)

    return logits


TEXTS = st.lists(st.integers(0, 7), min_size=1, max_size=40)
SEEDS, SCALES = st.integers(0, 9), st.sampled_from([0.01, 1.0, 100.0])


@given(TEXTS, st.integers(2, 9), SEEDS, SCALES)
def test_a_model_does_not_diverge_from_itself(ids: list[int], context: int, seed: int, scale: float) -> None:
    model = drawn(seed, 8, scale)
    one, two, apart = divergence(model, model, ids, spell, context=context, first=FIRST)
    assert apart == Divergence(0.0, 0.0, 1.0)
    assert one == two == bits_per_byte(model, ids, spell, context=context, first=FIRST)


@given(TEXTS, st.integers(2, 9), SEEDS, SEEDS, SCALES)
def test_divergence_is_that_of_torch(ids: list[int], context: int, seed: int, other: int, scale: float) -> None:
    original, model = drawn(seed, 8, scale), drawn(other, 8, scale)
    one, two, apart = divergence(original, model, ids, spell, context=context, first=FIRST)
    for score, source in ((one, original), (two, model)):
        assert score == bits_per_byte(source, ids, spell, context=context, first=FIRST)
    read = [window[:-1] for window in windows(ids, context, FIRST)]
    p, q = (torch.cat([torch.log_softmax(m(r).double(), -1) for r in read]) for m in (original, model))
    terms = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True)
    # Both add up the same terms, 8 a token, in some order.
    bound = 2 * (8 + len(ids)) * torch.finfo(torch.float64).eps * float(terms.abs().sum())
    each = terms.sum(-1)
    assert apart.mean_kl >= 0 and abs(apart.mean_kl - float(each.mean())) <= bound
    assert sum(k <= apart.kl_99 + bound for k in each.tolist()) >= 0.99 * len(ids)
    assert sum(k < apart.kl_99 - bound for k in each.tolist()) < 0.99 * len(ids)
    assert apart.agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())


def test_divergence_has_a_direction() -> None:
    def sure(read: Sequence[int]) -> torch.Tensor:
        logits = torch.full((len(read), 8), -math.inf)
        logits[:, 3] = 0
        return logits

    def unsure(read: Sequence[int]) -> torch.Tensor:
        return torch.zeros(len(read), 8)

    forth = divergence(sure, unsure, [3, 3, 3], spell, context=3, first=FIRST)[2]
    assert math.isclose(forth.mean_kl, math.log(8)) and math.isclose(forth.kl_99, math.log(8)) and forth.agreement == 0
    back = divergence(unsure, sure, [3, 3, 3], spell, context=3, first=FIRST)[2]
    assert (back.mean_kl, back.kl_99) == (math.inf, math.inf)


def test_large_vocabularies_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [n % 8 for n in range(40)]
    whole = divergence(drawn(1, 8, 1.0), drawn(2, 8, 1.0), ids, spell, context=20, first=FIRST)
    monkeypatch.setattr(evaluation, "_CHUNK", 3 * 8)
    parts = divergence(drawn(1, 8, 1.0), drawn(2, 8, 1.0), ids, spell, context=20, first=FIRST)
    assert whole[2] == parts[2]
    for one, two in zip(whole[:2], parts[:2]):
        # 40 positive numbers, added up in another order.
        assert abs(one.bits - two.bits) <= 2 * 40 * torch.finfo(torch.float64).eps * one.bits


def test_refused() -> None:
    with pytest.raises(InputError, match="the text has no tokens"):
        bits_per_byte(lambda read: torch.zeros(0, 8), [], spell, context=5, first=FIRST)
    with pytest.raises(InputError, match="a window of 1 tokens predicts nothing"):
        bits_per_byte(lambda read: torch.zeros(0, 8), [1], spell, context=1, first=FIRST)
    with pytest.raises(InputError, match="0 windows measure nothing"):
        bits_per_byte(lambda read: torch.zeros(len(read), 8), [1], spell, context=2, first=FIRST, limit=0)
    with pytest.raises(
        InputError, match="the text is too short: its 3 tokens fill 2 windows of 3, and 5 were asked for"
    ):
        bits_per_byte(lambda read: torch.zeros(len(read), 8), [1, 2, 3], spell, context=3, first=FIRST, limit=5)
    with pytest.raises(InputError, match="not a number"):
        bits_per_byte(lambda read: torch.full((len(read), 8), math.nan), [1], spell, context=5, first=FIRST)
    with pytest.raises(InputError, match="spell no text"):
        bits_per_byte(lambda read: torch.zeros(len(read), 8), [1], lambda run: "", context=5, first=FIRST)
    with pytest.raises(InputError, match="a vocabulary of 8 tokens and the model one of 9"):
        divergence(drawn(0, 8, 1.0), drawn(0, 9, 1.0), [1], spell, context=5, first=FIRST)


class StandIn:
    """What evaluation uses of an artifact: logits of a function, and a tokenizer's folder."""

    def __init__(self, folder: Path, logits: Model, programs: Sequence[str] = (), **metadata: Any) -> None:
        self.folder, self.logits = folder, logits
        self.programs = dict.fromkeys(programs)
        self.metadata = {"bos_token_id": 1, "eos_token_ids": (2,), "context_length": 20, **metadata}

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder)


def uniform(read: Sequence[int]) -> torch.Tensor:
    return torch.zeros(len(read), VOCABULARY)


def test_a_program_is_evaluated(checkpoint: Path) -> None:
    moves: list[tuple[float, str]] = []
    program: Any = StandIn(checkpoint, uniform)
    found = evaluate(program, "a few words of text", context=6, progress=lambda *move: moves.append(move))
    assert (found.score.tokens, found.score.bytes, found.windows, found.first) == (19, 19, 4, 1)
    assert math.isclose(found.score.value, math.log2(VOCABULARY)) and math.isclose(found.score.perplexity, VOCABULARY)
    assert [fraction for fraction, _ in moves] == [0.25, 0.5, 0.75, 1.0]
    assert "4 windows" in found.rule and "up to 5 tokens" in found.rule
    # By default, windows are as long as the context allows.
    assert evaluate(program, "a few words of text").context == 20
    assert evaluate(StandIn(checkpoint, uniform, context_length=None), "a").context == 512  # type: ignore[arg-type]
    part = evaluate(program, "a few words of text", context=6, limit=2)
    assert (part.score.tokens, part.score.bytes) == (10, 10)
    # Where there is no beginning-of-sequence token, texts follow the end of others.
    assert evaluate(StandIn(checkpoint, uniform, bos_token_id=None), "a").first == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("", {}, "the text has no tokens"),
        ("some text", {"context": 1}, "a window of 1 tokens predicts nothing"),
        ("some text", {"context": 21}, "exceeds the context that the model was built for, 20 tokens"),
        ("some text", {"context": 3, "limit": 6}, "the text is too short"),
    ],
)
def test_a_text_that_cannot_be_measured(checkpoint: Path, text: str, options: dict[str, int], sentence: str) -> None:
    program: Any = StandIn(checkpoint, uniform)
    with pytest.raises(InputError, match=sentence):
        evaluate(program, text, **options)
    with pytest.raises(InputError, match=sentence):
        compare(StandIn(checkpoint, uniform, context_length=None), program, text, **options)  # type: ignore[arg-type]


def test_programs_that_cannot_be_measured(checkpoint: Path, tmp_path: Path) -> None:
    good: Any = StandIn(checkpoint, uniform)
    without: Any = StandIn(checkpoint, uniform, bos_token_id=None, eos_token_ids=())
    with pytest.raises(InputError, match="the model has neither a beginning-of-sequence nor an end token"):
        evaluate(without, "a")
    translator: Any = StandIn(checkpoint, uniform, programs=["encode"])
    with pytest.raises(InputError, match="the original reads a source besides its text"):
        compare(translator, good, "a")
    other: Any = StandIn(checkpoint, uniform, bos_token_id=0)
    with pytest.raises(InputError, match=r"start with token 1 and those of .* with token 0"):
        compare(good, other, "a")
    shutil.copytree(checkpoint, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    # How a tokenizer cuts texts is overridden, so it makes no difference.
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(content | {"truncation": cut}), encoding="utf-8")
    assert compare(good, StandIn(tmp_path / "other", uniform), "abcdef").divergence.agreement == 1  # type: ignore[arg-type]
    content["model"]["vocab"] |= {"a": content["model"]["vocab"]["b"], "b": content["model"]["vocab"]["a"]}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"the tokenizers of .* differ"):
        compare(good, StandIn(tmp_path / "other", uniform), "a")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The bundled model, compiled."""
    model = planish.trace(BUNDLED, check=False)
    yield planish.load(planish.build(model, check=False).save(tmp_path_factory.mktemp("bundled") / "artifact"))


@pytest.mark.full
def test_the_bundled_model_predicts_as_in_transformers(bundled: Any) -> None:
    """An artifact's logits are within four times what rounding to float32 does to those of transformers.

    With logits off by d at most, a logarithm of a probability is off by 2 d, and so are nats and divergence of a token.
    """
    exact = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float64)
    plain = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    text, context, limit = (BUNDLED / "heldout.txt").read_text(encoding="utf-8"), 128, 3
    ids = transformers.AutoTokenizer.from_pretrained(BUNDLED).encode(text, add_special_tokens=False)
    cut = [[1, *ids[start : start + context - 1]] for start in range(0, limit * (context - 1), context - 1)]
    with torch.no_grad():
        logits = {tuple(w[:-1]): exact(torch.tensor([w[:-1]])).logits[0] for w in cut}
        rounding = max(float((plain(torch.tensor([r])).logits[0] - found).abs().max()) for r, found in logits.items())
    bits = sum(
        float(torch.nn.functional.cross_entropy(logits[tuple(w[:-1])], torch.tensor(w[1:]), reduction="sum"))
        for w in cut
    ) / math.log(2)
    oracle: Any = StandIn(BUNDLED, lambda read: logits[tuple(read)], context_length=1024)
    found = compare(oracle, bundled, text, context=context, limit=limit)
    assert found.model.score.tokens == limit * (context - 1) and found.model.windows == limit
    assert math.isclose(found.original.score.bits, bits, rel_tol=1e-12)
    off = 2 * 4 * rounding
    assert abs(found.model.score.bits - bits) <= off * found.model.score.tokens / math.log(2)
    assert found.divergence.mean_kl <= off and found.divergence.kl_99 <= off
    best = torch.cat([found.topk(2).values for found in logits.values()])
    ties = int((best[:, 0] - best[:, 1] <= off).sum())
    assert found.divergence.agreement >= 1 - ties / len(best)
    assert evaluate(bundled, text, context=context, limit=limit).score == found.model.score
