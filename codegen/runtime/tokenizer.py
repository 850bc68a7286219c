"""The tokenizer of an artifact: text to ids and back, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from planish.codegen.runtime.errors import input_error

# The decoder writes this for bytes that do not make a character yet.
INCOMPLETE = "\ufffd"


class Tokenizer:
    """Wraps the `tokenizers` file of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise input_error(f"{folder} has no tokenizer.json, so it takes token ids only; use generate_ids")
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise input_error(
                "text needs the package tokenizers; pip install 'planish[hf]', or use token ids"
            ) from None
        self._folder = folder
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            raise input_error(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error
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
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            raise input_error("chat templates need the package jinja2; pip install 'planish[hf]'") from None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        # What templates of checkpoints count on besides jinja's own.
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        environment.filters["tojson"] = _to_json
        special = {k: _text(v) for k, v in self._config().items() if k.endswith("_token") and v is not None}
        try:
            template = environment.from_string(source)
            return str(template.render(messages=list(messages), add_generation_prompt=True, **special))
        except TemplateError as error:
            raise input_error(f"the chat template of this artifact fails: {error}") from error

    def _config(self) -> dict[str, Any]:
        path = self._folder / "tokenizer_config.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise input_error(f"{path} is not JSON: {error}") from error
        return found

    def _template(self) -> str:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self._config().get("chat_template")
        if isinstance(template, list):
            # Several templates with names.
            template = {t.get("name"): t.get("template") for t in template}.get("default")
        if not isinstance(template, str):
            raise input_error("the tokenizer of this artifact has no chat template; give a plain prompt")
        return template


def _refuse(message: str) -> str:
    raise input_error(f"the chat template of this artifact refuses the messages: {message}")


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


# So many ids of the prompt are decoded along with new ones: a decoder may write an id differently at the start of a text.
_CONTEXT = 8


class TextStream:
    """Turns ids that come one by one into text, holding back what may still change.

    Held back are bytes that make no character yet, and a tail that may be the beginning of a stop string. Each id is
    decoded together with those of the step before, so that a long text costs no more a token than a short one.

    Args:
        tokenizer: the artifact's.
        stop: strings before which the text ends.
        prompt: the ids that the new ones go on from.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], prompt: Sequence[int] = ()) -> None:
        if any(not s for s in stop):
            raise input_error("a stop string must not be empty")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._known, self._new = list(prompt[-_CONTEXT:]), list[int]()
        self._pending = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after one more token; sets `stopped` when a stop string is complete."""
        self._new.append(token)
        text = self._undecoded()
        if text.endswith(INCOMPLETE):
            return ""
        if text:
            self._known, self._new = self._new, []
        self._pending += text
        ends = [at for s in self._stop if (at := self._pending.find(s)) >= 0]
        if ends:
            self.stopped = True
            return self._emit(min(ends))
        return self._emit(len(self._pending) - max((_begun(self._pending, s) for s in self._stop), default=0))

    def close(self) -> str:
        """The text that was still held back."""
        if self.stopped:
            return ""
        self._pending += self._undecoded()
        return self._emit(len(self._pending))

    def _undecoded(self) -> str:
        """What the ids that are not text yet add to those before them."""
        before = self._tokenizer.decode(self._known)
        return self._tokenizer.decode([*self._known, *self._new])[len(before) :]

    def _emit(self, end: int) -> str:
        piece, self._pending = self._pending[:end], self._pending[end:]
        return piece


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
