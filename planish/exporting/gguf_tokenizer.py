"""The tokenizer of a checkpoint in the words of GGUF: byte-level BPE whose way of splitting text llama.cpp knows by name.

Special tokens, merges and the chat template are read by gguf's own `SpecialVocab`. What a tokenizer.json does beyond its
vocabulary is compared with what llama.cpp does under each name, and refused where they differ; the one exception is
Unicode normalisation (NFC) in front of Qwen's, which llama.cpp leaves out. Source: llama-vocab.cpp of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.ir import InputError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Splitting:
    """How text is cut into words: by a regular expression, or by that of GPT-2 if there is none.

    Attributes:
        regex: the expression.
        whole_words: words that are tokens are taken as they are, without merges.
        normalizers: types of normalisers that may stand in front.
    """

    regex: str | None
    whole_words: bool
    normalizers: tuple[str | None, ...] = (None,)


SPLITTINGS = {
    "gpt-2": _Splitting(None, whole_words=False),
    "llama-bpe": _Splitting(_WORDS + r"\p{N}{1,3}" + _REST, whole_words=True),
    "qwen2": _Splitting(_WORDS + r"\p{N}" + _REST, whole_words=False, normalizers=(None, "NFC")),
}
"""By the name that llama.cpp has for them."""


@dataclass(frozen=True)
class Vocabulary:
    """Attributes:
    splitting: a key of SPLITTINGS.
    tokens, types: of every id; types are names of gguf's TokenType.
    """

    splitting: str
    tokens: tuple[str, ...]
    types: tuple[str, ...]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a checkpoint folder, filled up to `size` ids with unused tokens.

    Raises:
        InputError: for a tokenizer that llama.cpp has no equal of, or that cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        model, added = made["model"], made.get("added_tokens") or []
        splitting = _splitting(made)
        ids = {i: t for t, i in model.get("vocab", {}).items()} if model.get("type") == "BPE" else {}
        types = dict.fromkeys(ids, "NORMAL")
        for token in added:
            ids[token["id"]] = token["content"]
            types[token["id"]] = "CONTROL" if token["special"] else "USER_DEFINED"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a tokenizer: {error}") from error
    if splitting is None:
        raise InputError(
            f"{path} does not split text in a way that llama.cpp has a name for (byte-level BPE as {', '.join(SPLITTINGS)}), "
            "so it cannot be written to GGUF; export the model as compressed-tensors instead"
        )
    if ids and max(ids) >= size:
        raise InputError(f"{path} has a token of id {max(ids)}, but the model has a vocabulary of {size}")
    every = range(size)
    return Vocabulary(
        splitting,
        tuple(ids.get(i, f"[PAD{i}]") for i in every),
        tuple(types.get(i, "UNUSED") for i in every),
    )


def _splitting(made: Mapping[str, Any]) -> str | None:
    model, normalizer = made["model"], made.get("normalizer")
    known = {"type": "BPE", "dropout": None, "byte_fallback": False, "continuing_subword_prefix": None}
    differs = any((model.get(field) or None) != (value or None) for field, value in known.items())
    if differs or model.get("end_of_word_suffix"):
        return None
    steps = made.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    *splits, bytes_ = steps or [{}]
    if bytes_.get("type") != "ByteLevel" or bytes_.get("add_prefix_space") or len(splits) > 1:
        return None
    if bytes_.get("use_regex", True) == bool(splits):
        return None
    if splits and (splits[0].get("type"), splits[0].get("behavior"), splits[0].get("invert")) != (
        "Split",
        "Isolated",
        False,
    ):
        return None
    regex = splits[0].get("pattern", {}).get("Regex") if splits else None
    for name, found in SPLITTINGS.items():
        same = found.regex == regex and found.whole_words == bool(model.get("ignore_merges"))
        if same and (normalizer or {}).get("type") in found.normalizers:
            return name
    return None
