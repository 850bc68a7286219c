"""Text that streams, stop strings and chat templates; the tokenizer is made here and knows bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from planish.codegen.runtime.tokenizer import TextStream, Tokenizer
from planish.ir import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose tokens are bytes, so that one character may take four of them."""
    made = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = tokenizers.Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.enable_truncation(3)
    bytewise.enable_padding(length=50)
    bytewise.save(str(made / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def bytewise(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def run(tokenizer: Tokenizer, text: str, stop: tuple[str, ...]) -> list[str]:
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.close()]


@given(st.text(st.sampled_from("abé€😀 "), max_size=12))
def test_pieces_are_whole_characters_and_join_to_the_text(bytewise: Tokenizer, text: str) -> None:
    pieces = run(bytewise, text, ())
    assert "".join(pieces) == text
    assert not any("\ufffd" in p for p in pieces)


@given(
    st.text(st.sampled_from("abé"), max_size=12),
    st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_the_first_stop_string_ends_the_text(bytewise: Tokenizer, text: str, stops: list[str]) -> None:
    # The stop string that is complete first ends the stream; of several complete at once, the one that began first.
    done = min((at + len(s) for s in stops if (at := text.find(s)) >= 0), default=None)
    ends = [text.find(s) for s in stops if text.find(s) >= 0 and text.find(s) + len(s) == done]
    assert "".join(run(bytewise, text, tuple(stops))) == (text if done is None else text[: min(ends)])


def test_what_may_begin_a_stop_string_is_held_back(bytewise: Tokenizer) -> None:
    assert run(bytewise, "xabcabd", ("abd",)) == ["x", "", "", "abc", "", "", "", ""]
    assert run(bytewise, "xab", ("abd",)) == ["x", "", "", "ab"]


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=12), st.data())
def test_words_keep_the_space_before_them(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], data: Any
) -> None:
    """Decoders of this kind drop the space at the start of a text: new ids are no start."""
    folder = tmp_path_factory.getbasetemp() / "words"
    if not folder.exists():
        folder.mkdir()
        spaced = tokenizers.Tokenizer(models.WordLevel({"\u2581a": 0, "\u2581b": 1}, unk_token="\u2581a"))
        spaced.pre_tokenizer, spaced.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        spaced.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode(" ".join(words))
    split = data.draw(st.integers(0, len(ids)))
    stream = TextStream(tokenizer, (), ids[:split])
    new = "".join([*map(stream.push, ids[split:]), stream.close()])
    assert tokenizer.decode(ids[:split]) + new == " ".join(words)


def test_a_stored_limit_cuts_no_prompt(bytewise: Tokenizer) -> None:
    assert len(bytewise.encode("twelve bytes")) == 12


def chat(folder: Path, into: Path, config: dict[str, Any], template: str | None = None) -> Tokenizer:
    (into / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (into / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (into / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Tokenizer(into)


MESSAGES = [{"role": "user", "content": "hé"}]


@pytest.mark.parametrize(
    ("config", "template", "text"),
    [
        ({"chat_template": "{{ messages[0].role }}"}, None, "user"),
        ({"chat_template": "unused"}, "{{ bos_token }}|{{ messages[0].content }}", "|hé"),
        ({"bos_token": "<s>"}, "{{ bos_token }}{% if add_generation_prompt %}>{% endif %}", "<s>>"),
        ({"bos_token": {"content": "<b>"}}, "{{ bos_token }}", "<b>"),
        ({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]}, None, "y"),
        ({}, "{{ messages[0] | tojson }}", '{"role": "user", "content": "hé"}'),
        ({}, "{% for m in [1, 2] %}{{ m }}{% break %}{% endfor %}", "1"),
    ],
)
def test_templates(folder: Path, tmp_path: Path, config: dict[str, Any], template: str | None, text: str) -> None:
    assert chat(folder, tmp_path, config, template).chat(MESSAGES) == text


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no system role') }}", "refuses the messages: no system role"),
        ("{% for %}", "the chat template of this artifact fails"),
        ("{{ messages.__class__.__mro__ }}", "the chat template of this artifact fails"),
    ],
)
def test_templates_that_fail(folder: Path, tmp_path: Path, template: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        chat(folder, tmp_path, {}, template).chat(MESSAGES)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json, so it takes token ids only"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is no tokenizer"):
        Tokenizer(tmp_path)
