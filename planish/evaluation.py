"""How well a model predicts a text, and how far its predictions are from those of the model it was made from.

The window rule: the text's tokens are cut into non-overlapping runs of context - 1 tokens, each preceded by the
beginning-of-sequence token; every token of the text is predicted exactly once, from its own window only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from planish.ir import InputError

if TYPE_CHECKING:
    from planish.codegen.runtime.language_model import LanguageModel

Logits = Callable[[Sequence[int]], "torch.Tensor"]
"""ids -> float logits [len(ids), vocabulary]."""
Progress = Callable[[float, str], None]

CONTEXT = 512
"""Tokens of a window where nobody says otherwise and the model's context holds them."""
_CHUNK = 1 << 22
"""So many probabilities are in float64 at a time: the vocabulary may have hundreds of thousands of tokens."""


@dataclass(frozen=True)
class BitsPerByte:
    """The sum of -log2 p over `tokens` predicted tokens, and the bytes of text that they spell."""

    bits: float
    tokens: int
    bytes: int

    @property
    def value(self) -> float:
        return self.bits / self.bytes

    @property
    def perplexity(self) -> float:
        """2^(bits / tokens); infinite beyond the largest float."""
        bits = self.bits / self.tokens
        return 2.0**bits if bits < 1024 else math.inf


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        score: bits, tokens and bytes, with bits per byte and perplexity.
        context: tokens in a window, the first one included.
        windows: how many windows were measured.
        first: the token that starts each window.
        seconds: what the model's calls took.
    """

    score: BitsPerByte
    context: int
    windows: int
    first: int
    seconds: float

    @property
    def rule(self) -> str:
        """The window rule in one line."""
        return (
            f"{self.windows} windows that do not overlap, each token {self.first} and up to {self.context - 1} tokens of "
            "the text, which are predicted from their own window only"
        )


@dataclass(frozen=True)
class Divergence:
    """How far the predictions of one model are from those of another, over the same positions.

    Attributes:
        mean_kl: the mean over tokens of KL(original || model), in nats.
        kl_99: the 99th percentile of the same: the least value that at least 99 of 100 tokens do not exceed.
        agreement: the share of tokens at which both find the same token likeliest.
    """

    mean_kl: float
    kl_99: float
    agreement: float


@dataclass(frozen=True)
class Comparison:
    """Two models over the same windows of a text."""

    original: Evaluation
    model: Evaluation
    divergence: Divergence

    @property
    def bits_per_byte_difference(self) -> float:
        """Bits per byte of the model less those of the original."""
        return self.model.score.value - self.original.score.value


def windows(ids: Sequence[int], context: int, first: int) -> list[list[int]]:
    """The window rule: runs of `context - 1` tokens, each after the token `first`."""
    run = context - 1
    return [[first, *ids[start : start + run]] for start in range(0, len(ids), run)]


def bits_per_byte(
    logits: Logits,
    ids: Sequence[int],
    spell: Callable[[Sequence[int]], str],
    *,
    context: int,
    first: int,
    limit: int | None = None,
) -> BitsPerByte:
    """Measure over the first `limit` windows (all of them by default).

    Args:
        logits: the model, called once a window.
        ids: the whole text's tokens, without special ones.
        spell: text of a run of tokens, to count its UTF-8 bytes; called once, for all tokens that were predicted.
        context: tokens in a window, the first one included.
        first: the token that starts each window.
        limit: how many windows to measure.

    Raises:
        InputError: when the text has no tokens or fewer windows than `limit`, a window holds none of them, or the model
            predicts something that is not a number.
    """
    chosen = _chosen(ids, context, first, limit)
    nats = 0.0
    for window in chosen:
        nats += sum(_nats(found, targets) for found, targets in _predictions(logits(window[:-1]), window[1:]))
    return _score(nats, chosen, spell)


def divergence(
    original: Logits,
    model: Logits,
    ids: Sequence[int],
    spell: Callable[[Sequence[int]], str],
    *,
    context: int,
    first: int,
    limit: int | None = None,
) -> tuple[BitsPerByte, BitsPerByte, Divergence]:
    """Scores of two models, and how far apart they are, from one call of each a window.

    KL(P || Q) = sum of P log(P / Q) over the vocabulary, in float64, for every predicted token. Arguments and errors are
    those of `bits_per_byte`, and:

    Raises:
        InputError: when the models have vocabularies of different sizes.
    """
    chosen = _chosen(ids, context, first, limit)
    nats, kl, agreeing = [0.0, 0.0], list[float](), 0
    for window in chosen:
        scores = [torch.as_tensor(m(window[:-1])) for m in (original, model)]
        sizes = [s.shape[-1] for s in scores]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"the original has a vocabulary of {sizes[0]} tokens and the model one of {sizes[1]}; only models with the "
                "same vocabulary have a divergence"
            )
        for (p, targets), (q, _) in zip(*(_predictions(s, window[1:]) for s in scores)):
            nats = [total + _nats(found, targets) for total, found in zip(nats, (p, q))]
            shares = p.exp()
            # What is impossible, or too rare for a float64, adds nothing, however impossible the other finds it.
            terms = torch.where(shares > 0, shares * (p - q), 0.0)
            # No divergence is negative; what a sum has below zero is its rounding.
            kl += terms.sum(-1).clamp_min(0.0).tolist()
            agreeing += int((p.argmax(-1) == q.argmax(-1)).sum())
    found = Divergence(math.fsum(kl) / len(kl), sorted(kl)[-(-99 * len(kl) // 100) - 1], agreeing / len(kl))
    return _score(nats[0], chosen, spell), _score(nats[1], chosen, spell), found


def evaluate(
    program: LanguageModel,
    text: str,
    *,
    context: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Perplexity and bits per byte of an artifact on a text.

    Args:
        program: an artifact that generates, and has a tokenizer.
        text: what to predict; it is encoded without special tokens.
        context: tokens in a window; `CONTEXT`, or all of the model's context where that is shorter, when None.
        limit: measure the first so many windows; all of them when None.
        progress: called with a fraction between 0 and 1 and a phrase.

    Raises:
        InputError: when the text or the window cannot be measured (see `bits_per_byte`), a window exceeds the context of
            the artifact, or the artifact has no tokenizer, no token to start with, or reads a source besides the text.
    """
    subject = _Subject(program, "the model")
    size = _context(context, [subject])
    ids = program.tokenizer.encode(text, special=False)
    subject.report(progress, _count(ids, size, limit))
    score = bits_per_byte(subject, ids, _speller(program, text, ids), context=size, first=subject.first, limit=limit)
    return subject.result(score, size)


def compare(
    original: LanguageModel,
    model: LanguageModel,
    text: str,
    *,
    context: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Both models on a text, and how far the second's predictions are from the first's, over the same windows.

    Arguments and errors are those of `evaluate`, and:

    Raises:
        InputError: when the tokenizers, the tokens that start a window or the sizes of the vocabularies differ.
    """
    one, two = _Subject(original, "the original"), _Subject(model, "the model")
    if _tokenizer(original) != _tokenizer(model):
        raise InputError(
            f"the tokenizers of {original.folder} and {model.folder} differ, so their predictions are of different tokens; "
            "compare models with the same tokenizer.json"
        )
    if one.first != two.first:
        raise InputError(
            f"windows of {original.folder} start with token {one.first} and those of {model.folder} with token {two.first}; "
            "compare models that start texts with the same token"
        )
    size = _context(context, [one, two])
    ids = original.tokenizer.encode(text, special=False)
    two.report(progress, _count(ids, size, limit))
    spell = _speller(original, text, ids)
    before, after, apart = divergence(one, two, ids, spell, context=size, first=one.first, limit=limit)
    return Comparison(one.result(before, size), two.result(after, size), apart)


def start_token(program: LanguageModel, name: str) -> int:
    """The token that a text starts with: the beginning-of-sequence token, or an end token in models without the former,
    which were trained on texts that follow each other's end.

    Raises:
        InputError: naming the program by `name`, when it has neither, or reads a source besides the text.
    """
    if "encode" in program.programs:
        raise InputError(f"{name} reads a source besides its text, so a text alone says nothing about its predictions")
    tokens = [program.metadata.get("bos_token_id"), *(program.metadata.get("eos_token_ids") or ())]
    known = [int(token) for token in tokens if token is not None]
    if not known:
        raise InputError(f"{name} has neither a beginning-of-sequence nor an end token, so no window can start")
    return known[0]


class _Subject:
    """A program's logits, counted and timed."""

    def __init__(self, program: LanguageModel, name: str) -> None:
        self.first = start_token(program, name)
        self.name, self.longest = name, program.metadata.get("context_length")
        self._program, self._total = program, 1
        self._progress: Progress = _quiet
        self.calls, self.seconds = 0, 0.0

    def report(self, progress: Progress | None, total: int) -> None:
        """Call `progress` after each of `total` calls."""
        self._progress, self._total = progress or _quiet, total

    def __call__(self, ids: Sequence[int]) -> torch.Tensor:
        start = time.perf_counter()
        logits = torch.as_tensor(self._program.logits(ids))
        self.seconds += time.perf_counter() - start
        self.calls += 1
        self._progress(self.calls / self._total, f"window {self.calls} of {self._total}")
        return logits

    def result(self, score: BitsPerByte, context: int) -> Evaluation:
        return Evaluation(score, context, self.calls, self.first, self.seconds)


def _quiet(fraction: float, phrase: str) -> None:
    """Progress that nobody watches."""


def _context(asked: int | None, subjects: Sequence[_Subject]) -> int:
    """Tokens of a window, which every subject's context must hold."""
    longest = min((s.longest for s in subjects if s.longest is not None), default=None)
    if asked is None:
        return CONTEXT if longest is None else min(CONTEXT, longest)
    for subject in subjects:
        if subject.longest is not None and asked > subject.longest:
            raise InputError(
                f"a window of {asked} tokens exceeds the context that {subject.name} was built for, {subject.longest} tokens"
            )
    return asked


def _count(ids: Sequence[int], context: int, limit: int | None) -> int:
    return -(-len(ids) // max(context - 1, 1)) if limit is None else limit


def _chosen(ids: Sequence[int], context: int, first: int, limit: int | None) -> list[list[int]]:
    """The windows to measure."""
    if context < 2:
        raise InputError(f"a window of {context} tokens predicts nothing; it needs at least 2")
    if not ids:
        raise InputError("the text has no tokens, so there are no bits per byte")
    if limit is not None and limit < 1:
        raise InputError(f"{limit} windows measure nothing; ask for at least 1")
    found = windows(ids, context, first)
    if limit is not None and limit > len(found):
        raise InputError(
            f"the text is too short: its {len(ids)} tokens fill {len(found)} windows of {context}, and {limit} were asked for"
        )
    return found[:limit]


def _predictions(scores: Any, targets: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Natural logarithms of probabilities, float64 [rows, vocabulary], and the targets [rows], some rows at a time."""
    whole, wanted = torch.as_tensor(scores), torch.tensor(targets)
    rows = max(1, _CHUNK // whole.shape[-1])
    for start in range(0, len(targets), rows):
        found = torch.log_softmax(whole[start : start + rows].to(torch.float64), -1)
        if bool(found.isnan().any()):
            raise InputError("the model predicts what is not a number, so nothing can be measured; check its weights")
        yield found, wanted[start : start + rows]


def _nats(found: torch.Tensor, targets: torch.Tensor) -> float:
    return -float(found.gather(1, targets.unsqueeze(1)).sum())


def _score(nats: float, chosen: Sequence[Sequence[int]], spell: Callable[[Sequence[int]], str]) -> BitsPerByte:
    predicted = [token for window in chosen for token in window[1:]]
    size = len(spell(predicted).encode())
    if not size:
        raise InputError("the measured tokens spell no text, so there are no bits per byte; give a longer text")
    return BitsPerByte(nats / math.log(2), len(predicted), size)


def _speller(program: LanguageModel, text: str, ids: Sequence[int]) -> Callable[[Sequence[int]], str]:
    """Text of the first tokens: the text itself for all of them, for not every tokenizer spells it back."""
    return lambda run: text if len(run) == len(ids) else program.tokenizer.decode(run)


def _tokenizer(program: LanguageModel) -> Any:
    """What a tokenizer's file says, but for how it would cut and pad."""
    # Whether there is one, and whether it can be read, is its own business.
    _ = program.tokenizer
    found: dict[str, Any] = json.loads((program.folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("truncation", "padding")}
