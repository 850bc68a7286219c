"""An artifact as a model of EleutherAI's lm-evaluation-harness, for scores on its tasks. Needs the extra "eval".

    results = score_tasks(planish.load("artifact"), ["arc_easy", "hellaswag"], limit=100)

What is encoded and cut, and how, is what the harness does for models of transformers, with one exception: a text whose
whole likelihood is asked for starts with one beginning-of-sequence token, also where the tokenizer would add another.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.ir import InputError

if importlib.util.find_spec("lm_eval") is None:
    raise InputError("scores on tasks need the package lm-eval: pip install 'planish[eval]'")

import torch
from lm_eval import simple_evaluate, utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from planish.codegen.runtime.tokenizer import TextStream
from planish.evaluation import start_token

if TYPE_CHECKING:
    from planish.codegen.runtime.language_model import LanguageModel

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Progress = Callable[[float, str], None]

MAX_LENGTH = 2048
"""The harness's own default for a model that states no context."""
NEW_TOKENS = 256
"""The harness's own default for a task that states no number of new tokens."""
UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}


def score_tasks(
    program: LanguageModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores of an artifact on tasks of the harness, or on tasks described in a folder.

    Args:
        program: an artifact that generates, and has a tokenizer.
        tasks: names; the harness fetches the data of its own ones over the network.
        limit: at most so many documents a task; all of them when None.
        include: a folder with further tasks in the harness's YAML form.
        progress: called with a fraction between 0 and 1, of one kind of request, and a phrase.

    Returns:
        For every task, the harness's metrics by name, such as "acc,none", with their standard errors.

    Raises:
        InputError: for a task that is not known, a limit below 1, or an artifact that takes no text alone.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{limit} documents score nothing; ask for at least 1")
    if include is not None and not include.is_dir():
        raise InputError(f"{include} is no folder of tasks")
    manager = _manager(tasks, include)
    model = ArtifactModel(program, progress=progress)
    found = simple_evaluate(model=model, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False)
    results: dict[str, dict[str, Any]] = found["results"]
    return results


def _manager(tasks: Sequence[str], include: Path | None) -> TaskManager:
    """What finds the tasks: in the folder alone if all of them are there, for reading the harness's own takes seconds."""
    folder = None if include is None else str(include)
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if folder is not None and not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    for name in tasks:
        if name not in manager.all_tasks:
            raise InputError(
                f"lm-eval knows no task {name!r}: `lm-eval ls tasks` lists its own, and a folder of others can be included"
            )
    return manager


class ArtifactModel(TemplateLM):  # type: ignore[misc]
    """A compiled language model behind the harness's interface; one sequence at a time.

    Raises:
        InputError: when the artifact has no tokenizer, no token to start with, or reads a source besides the text.
    """

    def __init__(self, program: LanguageModel, *, progress: Progress | None = None) -> None:
        super().__init__()
        self._program, self._progress = program, progress
        self._start = start_token(program, "the model")
        self._tokenizer = program.tokenizer
        self.max_length = int(program.metadata.get("context_length") or MAX_LENGTH)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ends = self._program.metadata.get("eos_token_ids") or (self._start,)
        return int(ends[0])

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        return self._start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, with the tokenizer's own special tokens unless told otherwise."""
        return self._tokenizer.encode(string, special=add_special_tokens is not False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """For each (context, continuation): ln p of the continuation, and whether greedy decoding would write it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """ln p of whole texts, in windows of the whole context, each token predicted once."""
        totals = []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(self._score(before, after)[0] for _, before, after in pieces))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
            self._report(number + 1, len(requests), "texts")
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Continue each context until one of its stop strings, an end token, or enough tokens."""
        texts = []
        for number, request in enumerate(requests):
            context, options = request.args
            texts.append(self._continue(context, options))
            self.cache_hook.add_partial("generate_until", (context, options), texts[-1])
            self._report(number + 1, len(requests), "continuations")
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        answers = []
        known: tuple[list[int], torch.Tensor] | None = None
        for number, (texts, before, after) in enumerate(requests):
            read = self._cut(before, after)
            # Choices of one token each follow one another and read the same tokens.
            if known is None or known[0] != read:
                known = (read, self._logarithms(read))
            answers.append(_sum(known[1], after))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
            self._report(number + 1, len(requests), "continuations")
        return answers

    def _score(self, before: list[int], after: list[int]) -> tuple[float, bool]:
        return _sum(self._logarithms(self._cut(before, after)), after)

    def _cut(self, before: list[int], after: list[int]) -> list[int]:
        """The tokens to read: all but the last one, and of those the last ones that the context holds."""
        if not after or len(after) > self.max_length:
            raise InputError(
                f"a continuation has {len(after)} tokens, but one of 1 to {self.max_length}, the context, can be scored"
            )
        return [*before, *after][-(self.max_length + 1) : -1]

    def _logarithms(self, read: list[int]) -> torch.Tensor:
        return torch.log_softmax(torch.as_tensor(self._program.logits(read)).to(torch.float64), -1)

    def _continue(self, context: str, options: Mapping[str, Any]) -> str:
        chosen: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), NEW_TOKENS))
        unknown = sorted(chosen.keys() - UNDERSTOOD)
        if unknown:
            raise InputError(
                f"the task generates with the option {unknown[0]!r}, which is not supported; "
                f"there are {', '.join(sorted(UNDERSTOOD))}"
            )
        new, room = int(chosen["max_gen_toks"]), self.max_length - int(chosen["max_gen_toks"])
        if room < 1:
            raise InputError(
                f"the task asks for {new} new tokens, which leave no room in the model's context of {self.max_length} tokens"
            )
        ids = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
        # The harness's own rule: without sampling, the temperature is 0, and with it 1 unless stated.
        temperature = float(chosen.get("temperature", 1.0 if chosen["do_sample"] else 0.0))
        stream = TextStream(self._tokenizer, [s for s in chosen["until"] if s], ids)
        tokens = self._program.stream_ids(
            ids, max_new_tokens=new, temperature=temperature, top_p=float(chosen.get("top_p", 1.0))
        )
        pieces = []
        for token in tokens:
            pieces.append(stream.push(token))
            if stream.stopped:
                break
        return "".join([*pieces, stream.close()])

    def _report(self, done: int, total: int, what: str) -> None:
        if self._progress is not None:
            self._progress(done / total, f"{done} of {total} {what}")


def _sum(logarithms: torch.Tensor, after: Sequence[int]) -> tuple[float, bool]:
    """ln p of the last tokens, and whether each was the likeliest."""
    rows, targets = logarithms[-len(after) :], torch.tensor(after)
    return float(rows.gather(1, targets.unsqueeze(1)).sum()), bool((rows.argmax(-1) == targets).all())
