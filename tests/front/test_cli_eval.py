"""`planish eval`: what it prints, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.cli.app import run

Captured = pytest.CaptureFixture[str]
TEXT = "a few words\r\nand a few more "


def command(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `planish eval`."""
    capsys.readouterr()
    code = run(["eval", *(str(a) for a in arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys: Captured, *arguments: object) -> Any:
    """What it prints with --json."""
    code, out, err = command(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def refusal(capsys: Captured, *arguments: object) -> str:
    """The one line with which it refuses."""
    code, out, err = command(capsys, *arguments)
    assert code in (1, 2) and out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give either a text or --tasks"),
        (("TEXT", "--tasks", "a"), "give either a text or --tasks"),
        (("TEXT", "--limit", 3), "--limit and --include need --tasks"),
        (("TEXT", "--include", "x"), "--limit and --include need --tasks"),
        (("--tasks", "a", "--against", "x"), "--against, --context and --windows need a text"),
        (("--tasks", "a", "--windows", 1), "--against, --context and --windows need a text"),
        (("--tasks", "a", "--context", 9), "--against, --context and --windows need a text"),
        (("TEXT",), "nowhere is neither a checkpoint folder"),
        (("missing.txt",), "the text missing.txt cannot be read: No such file"),
        (("FOLDER",), "cannot be read: Is a directory"),
    ],
)
def test_refused_before_anything_runs(
    capsys: Captured, text: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    places = {"TEXT": text, "FOLDER": text.parent}
    assert sentence in refusal(capsys, "nowhere", *(places.get(str(a), a) for a in arguments))


def test_a_text_in_another_encoding(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("née".encode("latin-1"))
    assert "latin.txt is not UTF-8: invalid continuation byte at byte 1" in refusal(capsys, "nowhere", path)


def test_a_network_that_predicts_no_tokens(capsys: Captured, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(8, 4).eval(), (torch.randn(3, 8),)), path)
    assert "network.pt2 does not generate text" in refusal(capsys, path, text)


def test_tasks_need_their_package(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *p: None if name == "lm_eval" else find(name, *p))
    monkeypatch.delitem(sys.modules, "planish.lm_eval_adapter", raising=False)
    assert "pip install 'planish[eval]'" in refusal(capsys, "nowhere", "--tasks", "arc_easy")


@pytest.mark.full
def test_an_artifact(capsys: Captured, artifact: Path, text: Path, tmp_path: Path) -> None:
    found = document(capsys, artifact, text, "--context", 8)
    model = found["model"]
    # The tokenizer knows no line ends, so two bytes are no token's; bytes are those of the file all the same.
    assert (model["tokens"], model["bytes"], model["windows"]) == (len(TEXT) - 2, len(TEXT), 4)
    bits = model["bits_per_byte"] * model["bytes"]
    assert math.isclose(model["perplexity"], 2 ** (bits / model["tokens"])) and model["seconds"] > 0
    assert "4 windows" in found["window_rule"]
    code, out, err = command(capsys, artifact, text, "--context", 8, "--threads", 1)
    assert code == 0 and out == "" and f"{model['perplexity']:.4f}" in err and found["window_rule"] in err
    assert document(capsys, artifact, text, "--context", 8, "--windows", 2)["model"]["tokens"] == 14
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    for arguments, sentence in (
        ((empty,), "the text has no tokens"),
        ((text, "--context", 1), "a window of 1 tokens predicts nothing"),
        ((text, "--context", 257), "exceeds the context that the model was built for, 256 tokens"),
        ((text, "--windows", 2), "the text is too short"),
        ((text, "--windows", 0), "0 windows measure nothing"),
    ):
        assert sentence in refusal(capsys, artifact, *arguments)


@pytest.mark.full
def test_against_the_checkpoint(capsys: Captured, artifact: Path, checkpoint: Path, text: Path) -> None:
    """The artifact was built from it in the same way, so not a bit differs."""
    code, out, err = command(capsys, artifact, text, "--against", checkpoint, "--json")
    assert code == 0 and f"{checkpoint} is no artifact: it is built for this machine in a temporary folder" in err
    found = json.loads(out)
    difference = {"mean_kl_nats": 0.0, "kl_99_nats": 0.0, "agreement": 1.0, "bits_per_byte_difference": 0.0}
    assert found["against_original"] == difference
    assert {k: v for k, v in found["model"].items() if k != "seconds"} == {
        k: v for k, v in found["original"].items() if k != "seconds"
    }
    code, out, err = command(capsys, artifact, text, "--against", artifact)
    assert code == 0 and out == "" and "100.00%" in err and "+0.0000" in err
