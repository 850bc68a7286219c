"""A batch of sequences being read: which tokens each row has so far, and the states that remember them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planish.codegen.runtime.caches import Caches
from planish.codegen.runtime.device import Device
from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.program import Program
from planish.codegen.runtime.tensors import aligned_zeros

# What fills a row after its real tokens; nothing reads it.
FILLER = 0


class Session:
    """Rows of token ids, left-aligned: row b has read `lengths[b]` tokens.

    Args:
        device: where the programs run.
        programs: the artifact's `prefill`, `extend` and `decode`, and `encode` if it reads a source.
        states: the manifest's states.
        batch: how many rows.
        context: the most tokens a row may have; None for no limit.
    """

    def __init__(
        self, device: Device, programs: Mapping[str, Program], states: Mapping[str, Any], batch: int,
        context: int | None = None,
    ) -> None:  # fmt: skip
        self._programs = programs
        self._source: dict[str, Any] = {}
        self._caches = Caches(device, states, {"B": batch})
        self._context = context
        self.lengths = [0] * batch

    def encode(self, rows: Sequence[Sequence[int]]) -> None:
        """Read the source of every row, before its first token.

        Raises:
            InputError: when a row's source has no token.
        """
        ids = self._aligned(rows, "the source of row")
        length = _lengths(rows)
        self._caches.reserve(ids.shape[1])
        self._run("encode", ids, length=length)
        self._source = {"source_length": length}

    def read(self, rows: Sequence[Sequence[int]]) -> Any:
        """Read further tokens of every row; logits [batch, vocabulary] of each row's last one.

        Raises:
            InputError: when a row brings no token, or more than the context holds.
        """
        if all(len(row) == 1 for row in rows) and any(self.lengths):
            return self._decode(rows)
        if not any(self.lengths):
            ids = self._prepare(rows)
            logits = self._run("prefill", ids, length=_lengths(rows), **self._source)[0][:, 0]
            self._advance(rows)
            return logits
        every = self.read_all(rows)
        return np.stack([logits[-1] for logits in every])

    def read_all(self, rows: Sequence[Sequence[int]]) -> list[Any]:
        """Read further tokens of every row; logits [tokens, vocabulary] of all tokens of each row."""
        ids, start = self._prepare(rows), _vector(self.lengths)
        (logits,) = self._run("extend", ids, start=start, length=_lengths(rows), **self._source)
        self._advance(rows)
        return [logits[b, : len(row)] for b, row in enumerate(rows)]

    def _decode(self, rows: Sequence[Sequence[int]]) -> Any:
        ids = self._prepare(rows)
        logits = self._run("decode", ids, start=_vector(self.lengths), **self._source)[0][:, 0]
        self._advance(rows)
        return logits

    def _prepare(self, rows: Sequence[Sequence[int]]) -> Any:
        """Left-aligned ids, with room in the caches."""
        ids = self._aligned(rows, "row")
        for number, row in enumerate(rows):
            total = self.lengths[number] + len(row)
            if self._context is not None and total > self._context:
                raise input_error(
                    f"row {number} would have {total} tokens, but the context of this model holds {self._context}; "
                    "shorten the prompt or ask for fewer new tokens"
                )
        # Compiled code writes whole rows of tokens where they stand, filler too.
        self._caches.reserve(max(self.lengths) + ids.shape[1])
        return ids

    def _aligned(self, rows: Sequence[Sequence[int]], what: str) -> Any:
        """Left-aligned ids of as many rows as the session has."""
        if len(rows) != len(self.lengths):
            raise input_error(f"this session has {len(self.lengths)} rows, but {len(rows)} were given")
        for number, row in enumerate(rows):
            if not row:
                raise input_error(f"{what} {number} is empty: a model needs at least one token to go on from")
        longest = max(len(row) for row in rows)
        # What the runtime takes as it is, and not a copy of it.
        ids = aligned_zeros((len(rows), longest), np.int64)
        for number, row in enumerate(rows):
            ids[number] = [*row, *[FILLER] * (longest - len(row))]
        return ids

    def _run(self, name: str, ids: Any, **named: Any) -> list[Any]:
        """The results of a program, which takes its tokens first, under the name that the traced model has for them."""
        program = self._programs[name]
        states = [self._caches.tensors[s] for s in program.states]
        return program({next(iter(program.inputs)): ids, **named}, states)

    def _advance(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = [length + len(row) for length, row in zip(self.lengths, rows)]

    def forget_last(self, row: int) -> None:
        """Take back a row's last token: the next one is written over it."""
        self.lengths[row] -= 1

    @property
    def nbytes(self) -> int:
        """Bytes of the states as they are allocated now."""
        return self._caches.nbytes


def _lengths(rows: Sequence[Sequence[int]]) -> Any:
    return _vector([len(row) for row in rows])


def _vector(numbers: Sequence[int]) -> Any:
    """Whole numbers as compiled code takes them."""
    vector = aligned_zeros((len(numbers),), np.int64)
    vector[:] = numbers
    return vector
