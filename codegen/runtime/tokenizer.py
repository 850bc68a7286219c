"""The tokenizer of an artifact: text to ids and back, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.ir import InputError

# The decoder writes this for bytes that do not make a character yet.
INCOMPLETE = "\ufffd"


class Tokenizer:
    """Wraps the `tokenizers` file of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise InputError(f"{folder} has no tokenizer.json, so it takes token ids only; use generate_ids")
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise InputError("text needs the package tokenizers; pip install 'planish[hf]', or use token ids") from None
        self._folder = folder
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # A saved tokenizer may cut or pad; a prompt must arrive whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; `special` adds what the tokenizer puts around a text by itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Messages ({"role": ..., "content": ...}) as one prompt, by the checkpoint's own template."""
        source = self._template()
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            raise InputError("chat templates need the package jinja2; pip install 'planish[hf]'") from None
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        special = {k: _text(v) for k, v in self._config().items() if k.endswith("_token")}
        template = environment.from_string(source)
        return str(template.render(messages=list(messages), add_generation_prompt=True, **special))

    def _config(self) -> dict[str, Any]:
        path = self._folder / "tokenizer_config.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    def _template(self) -> str:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self._config().get("chat_template")
        if not isinstance(template, str):
            raise InputError("the tokenizer of this artifact has no chat template; give a plain prompt")
        return template


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


class TextStream:
    """Turns ids that come one by one into text, holding back what may still change.

    Held back are bytes that make no character yet, and a tail that may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        if any(not s for s in stop):
            raise InputError("a stop string must not be empty")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._given = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after one more token; sets `stopped` when a stop string is complete."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        ends = [at for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            self.stopped = True
            return self._emit(text, min(ends))
        certain = len(text)
        while certain and text[certain - 1] == INCOMPLETE:
            certain -= 1
        for s in self._stop:
            for size in range(min(len(s) - 1, certain), 0, -1):
                if text[:certain].endswith(s[:size]):
                    certain -= size
                    break
        return self._emit(text, certain)

    def close(self) -> str:
        """The text that was still held back."""
        return "" if self.stopped else self._emit(text := self._tokenizer.decode(self._ids), len(text))

    def _emit(self, text: str, end: int) -> str:
        piece = text[self._given : max(end, self._given)]
        self._given = max(end, self._given)
        return piece
