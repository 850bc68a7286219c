"""An artifact that reads a source through an encoder and writes a new text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.language_model import LanguageModel
from planish.codegen.runtime.session import Session


class EncoderDecoder(LanguageModel):
    """A sequence-to-sequence model ready to run: prompts are sources, and what is generated is a text of its own, which
    starts with the model's start token."""

    def logits(self, ids: Sequence[int], source: Sequence[int] | None = None) -> Any:
        """Logits after each token of one text written from a source: a float32 numpy array [len(ids), vocabulary]."""
        if source is None:
            raise input_error("a sequence-to-sequence model needs a source to write from: give logits(ids, source)")
        self._check_ids([ids])
        self._check_ids([source])
        session = self.session()
        session.encode([list(source)])
        return session.read_all([list(ids)])[0]

    def _before(self, row: list[int]) -> list[int]:
        return []

    def _begin(self, rows: list[list[int]]) -> tuple[Session, Any]:
        start = self.metadata.get("decoder_start_token_id")
        if start is None:
            raise input_error(
                "the model's config names no decoder_start_token_id, so there is no token to start a text with"
            )
        session = self.session(len(rows))
        session.encode(rows)
        return session, session.read([[int(start)] for _ in rows])
