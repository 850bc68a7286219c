"""An artifact that generates: text or token ids in, text or token ids out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, overload

from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.executable import Executable
from planish.codegen.runtime.sampling import Sampler, Sampling
from planish.codegen.runtime.session import Session
from planish.codegen.runtime.tokenizer import TextStream, Tokenizer


class LanguageModel(Executable):
    """A causal language model ready to run."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Facts about the model: vocab_size, context_length, eos_token_ids, ..."""
        found: dict[str, Any] = self.manifest["metadata"]
        return found

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer; raises InputError when it has none."""
        return Tokenizer(self.folder)

    def session(self, batch: int = 1) -> Session:
        """A fresh batch of rows to read tokens into."""
        return Session(self.device, self.programs, self.manifest["states"], batch, self.metadata.get("context_length"))

    def logits(self, ids: Sequence[int]) -> Any:
        """Logits after each token of one sequence: a float32 numpy array [len(ids), vocabulary]."""
        self._check_ids([ids])
        return self.session().read_all([list(ids)])[0]

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[str]: ...
    def generate(self, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
        """Continue one prompt, or a list of prompts of any lengths as one batch; see `stream` for the options."""
        if isinstance(prompt, str):
            return "".join(self.stream(prompt, **options))
        pieces: list[list[str]] = [[] for _ in prompt]
        for row, piece in self._stream_rows(list(prompt), **options):
            pieces[row].append(piece)
        return ["".join(p) for p in pieces]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Continue a prompt, piece by piece.

        Options: max_new_tokens (64), temperature (0: greedy), top_p (1), seed (0), stop (strings to stop before),
        stop_tokens (ids; the model's end tokens by default), chat (wrap the prompt in the chat template).

        Raises:
            InputError: for an empty prompt, one longer than the context, or an option that makes no sense.
        """
        yield from (piece for _, piece in self._stream_rows([prompt], **options))

    def _stream_rows(
        self,
        prompts: list[str],
        *,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        **options: Any,
    ) -> Iterator[tuple[int, str]]:
        if any(not p for p in prompts):
            raise input_error("the prompt is empty: give at least one character")
        tokenizer = self.tokenizer
        texts = [tokenizer.chat([{"role": "user", "content": p}]) if chat else p for p in prompts]
        # A template writes the special tokens itself.
        rows = [tokenizer.encode(t, special=not chat) for t in texts]
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        streams = [TextStream(tokenizer, stops, self._before(row)) for row in rows]
        for step in self._steps(rows, streams, **options):
            for row, token in step.items():
                piece = streams[row].push(token)
                if piece:
                    yield row, piece
        for row, text in enumerate(streams):
            rest = text.close()
            if rest:
                yield row, rest

    def generate_ids(self, ids: Sequence[int] | Sequence[Sequence[int]], **options: Any) -> list[int] | list[list[int]]:
        """New token ids after one sequence of ids, or after each of several; options as in `stream`, without `stop`."""
        ragged = len(ids) > 0 and not isinstance(ids[0], int)
        rows: list[list[int]] = [list(row) for row in ids] if ragged else [list(ids)]  # type: ignore
        new: list[list[int]] = [[] for _ in rows]
        for step in self._steps(rows, [], **options):
            for row, token in step.items():
                new[row].append(token)
        return new if ragged else new[0]

    def stream_ids(self, ids: Sequence[int], **options: Any) -> Iterator[int]:
        """New token ids after one sequence, one by one."""
        for step in self._steps([list(ids)], [], **options):
            yield from step.values()

    def _steps(
        self,
        rows: list[list[int]],
        streams: Sequence[TextStream],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
    ) -> Iterator[dict[int, int]]:
        """The new tokens of the rows that still run, step by step."""
        self._check_ids(rows)
        if max_new_tokens < 0:
            raise input_error(f"max_new_tokens must be at least 0, got {max_new_tokens}")
        ends = set(self.metadata.get("eos_token_ids") or ()) if stop_tokens is None else set(stop_tokens)
        sampler = Sampler(Sampling(temperature, top_p, seed), len(rows))
        limit = self.metadata.get("context_length")
        if max_new_tokens == 0:
            return
        running = set(range(len(rows)))
        session, logits = self._begin(rows)
        for number in range(max_new_tokens):
            chosen = sampler.choose(logits)
            running -= {row for row in running if chosen[row] in ends}
            yield {row: chosen[row] for row in sorted(running)}
            running -= {row for row, stream in enumerate(streams) if stream.stopped}
            full = {row for row in running if limit is not None and session.lengths[row] >= limit}
            running -= full
            if not running or number + 1 == max_new_tokens:
                return
            for row in range(len(rows)):
                # A row that is done repeats its last place, so that the others' rows stay where they are.
                if row not in running and session.lengths[row] > 0:
                    session.forget_last(row)
            logits = session.read([[token] for token in chosen])

    def _before(self, row: list[int]) -> list[int]:
        """The tokens that new ones continue, in the same text."""
        return row

    def _begin(self, rows: list[list[int]]) -> tuple[Session, Any]:
        """A session in which the first new token of each row follows, and the logits for it."""
        session = self.session(len(rows))
        return session, session.read(rows)

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        vocabulary = self.metadata.get("vocab_size")
        if not rows:
            raise input_error("there is nothing to continue: the list of prompts is empty")
        for number, row in enumerate(rows):
            if not row:
                raise input_error(f"prompt {number} is empty: give at least one token")
            wrong = [i for i in row if i < 0 or (vocabulary is not None and i >= vocabulary)]
            if wrong:
                raise input_error(
                    f"token {wrong[0]} of prompt {number} is outside the vocabulary of {vocabulary} tokens"
                )
