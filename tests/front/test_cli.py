"""Every command: what it prints, in which form and where, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import planish
from planish.cli.app import run
from planish.ir import Module, dense_param
from planish.passes.dead_code import DeadCode
from planish.passes.pass_base import Context, Pass, PassResult
from planish.passes.registry import PASSES, pass_names
from planish.passes.reproducer import write_reproducer

RECIPE = "passes:\n  - quantize: {format: 4, group: 32}\n  - quantize-activations\n"
Captured = pytest.CaptureFixture[str]


class Doubling(Pass):
    """Doubles every parameter, which no contract allows."""

    name: ClassVar[str] = "doubling"

    def apply(self, module: Module, context: Context) -> PassResult:
        params = {name: dense_param(name, p.storage()["values"] * 2) for name, p in module.params.items()}
        return PassResult(replace(module, params=params), 1)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small exported network."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32)).eval()
    path = tmp_path_factory.mktemp("network") / "network.pt2"
    torch.export.save(torch.export.export(module, (torch.randn(3, 64),)), path)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def command(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys: Captured, *arguments: object) -> Any:
    """What a command that succeeds prints with --json."""
    code, out, err = command(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.full
def test_the_installed_command() -> None:
    program = Path(sys.executable).with_name("planish")
    done = subprocess.run([program, "inspect", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: nowhere is neither") and done.stderr.count("\n") == 1
    assert subprocess.run([program, "--help"], capture_output=True).returncode == 0


def test_lists(capsys: Captured) -> None:
    assert sorted(document(capsys, "passes")) == pass_names()
    assert "host" in document(capsys, "targets")
    assert document(capsys, "passes", "quantize")["options"]["format"] == "4"
    for arguments in (("passes",), ("targets",), ("passes", "quantize")):
        code, out, err = command(capsys, *arguments)
        assert code == 0 and out == "" and err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("polish",), 2, "No such command 'polish'"),
        (("compile",), 2, "Missing argument"),
        (("compile", "x"), 2, "Missing option '--out'"),
        (("run", "x", "y", "--top-k", "3"), 2, "No such option"),
        (("run", "x", "y", "--temperature", "hot"), 2, "Invalid value for '--temperature'"),
        (("verify", "x"), 2, "give either --recipe or --with"),
        (("run", "nowhere", "hello"), 1, "nowhere is no artifact"),
        (("bench", "nowhere"), 1, "nowhere is no artifact"),
        (("inspect", "nowhere"), 1, "nowhere is neither a checkpoint folder"),
        (("verify", "nowhere", "--with", "x"), 1, "nowhere is neither a checkpoint folder"),
        (("reproduce", "nowhere"), 1, "nowhere is no reproducer"),
        (("compile", "nowhere", "--out", "x"), 1, "nowhere is neither a checkpoint folder"),
        (("compile", "nowhere", "--out", "x", "--target", "hots"), 1, "did you mean 'host'?"),
        (("passes", "ded-code"), 1, "did you mean 'dead-code'?"),
    ],
)
def test_errors_are_one_line(capsys: Captured, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    got, out, err = command(capsys, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_debug_shows_the_traceback(capsys: Captured) -> None:
    for arguments in (("--debug", "run", "nowhere", "x"), ("run", "nowhere", "x", "--debug")):
        code, _, err = command(capsys, *arguments)
        assert code == 1 and "Traceback" in err and "error: nowhere is no artifact" in err


def test_a_fault_of_planish_is_one_line_too(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("lost\nkey")

    monkeypatch.setattr("planish.load", fail, raising=False)
    code, _, err = command(capsys, "run", "nowhere", "x")
    assert code == 1 and err.count("\n") == 1 and "KeyError" in err and "--debug" in err


def test_an_interruption(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planish.load", interrupt, raising=False)
    assert command(capsys, "run", "nowhere", "x")[0] == 130


def test_inspect_a_program(capsys: Captured, network: Path) -> None:
    found = document(capsys, "inspect", network)
    assert found["functions"]["forward"]["linear"] == 2
    assert found["parameters"] == 4
    assert sum(found["bytes"].values()) == 4 * (64 * 32 + 32 + 32 * 32 + 32)
    code, out, _ = command(capsys, "inspect", network, "--text")
    assert code == 0 and "linear" in out
    assert command(capsys, "inspect", network)[0] == 0


def test_inspect_spaces(capsys: Captured, network: Path) -> None:
    found = document(capsys, "inspect", network, "--spaces")
    assert all(space["parameters"] for space in found)
    assert {space["family"] for space in found} <= {"fixed", "permutation", "centred", "orthogonal", "general"}
    hidden = next(space for space in found if len(space["parameters"]) == 3)
    assert [len(hidden[role]) for role in ("writers", "readers", "carried")] == [2, 1, 0]
    code, out, err = command(capsys, "inspect", network, "--spaces")
    assert code == 0 and out == "" and "permutations" in err


def test_draw_spaces(capsys: Captured, network: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, _, _ = command(capsys, "inspect", network, "--spaces", "--draw", tmp_path / "spaces.svg")
    drawn = (tmp_path / "spaces.svg").read_text(encoding="utf-8")
    assert code == 0 and drawn.lstrip().startswith("<?xml") and "permutations" in drawn
    code, _, err = command(capsys, "inspect", network, "--spaces", "--draw", tmp_path / "spaces.txt")
    assert code == 1 and "is no name of a picture" in err
    code, _, err = command(capsys, "inspect", network, "--draw", tmp_path / "spaces.svg")
    assert code == 1 and "give --spaces too" in err


def test_verify_a_recipe(capsys: Captured, network: Path, recipe: Path) -> None:
    (found,) = document(capsys, "verify", network, "--recipe", recipe)
    assert 0 < found["relative"] < 1 and not found["exact"]
    assert command(capsys, "verify", network, "--recipe", recipe, "--budget", 1)[0] == 0
    code, _, err = command(capsys, "verify", network, "--recipe", recipe, "--budget", found["relative"] / 2)
    assert code == 3 and "Differences" in err
    (same,) = document(capsys, "verify", network, "--with", network, "--budget", 0)
    assert same["exact"] and same["largest"] == 0 and same["agreement"] == 1


def test_reproduce(capsys: Captured, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = planish.trace(network).module
    good = write_reproducer(tmp_path / "good", module, [DeadCode()], 0, "none")
    assert [record["pass"] for record in document(capsys, "reproduce", good)] == ["dead-code"]
    assert document(capsys, "reproduce", good, "--bisect") is None
    monkeypatch.setitem(PASSES, "doubling", f"{__name__}:Doubling")
    monkeypatch.chdir(tmp_path)
    bad = write_reproducer(tmp_path / "bad", module, [DeadCode(), Doubling()], 0, "wrong")
    code, _, err = command(capsys, "reproduce", bad)
    assert code == 3 and "doubling" in err and "Traceback" not in err
    guilty = document(capsys, "reproduce", bad, "--bisect")
    assert (guilty["pass"], guilty["number"]) == ("doubling", 1)


@pytest.mark.full
def test_compile_and_inspect(capsys: Captured, network: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    found = document(capsys, "compile", network, "--recipe", recipe, "--out", out)
    assert found["artifact"] == str(out)
    assert found["weights"] < found["weights_before"] / 4
    assert found["bytes"] == sum(f.stat().st_size for f in out.iterdir())
    assert "quantize" in [record["pass"] for record in found["passes"]]
    manifest = document(capsys, "inspect", out)
    assert set(manifest["functions"]) == {"forward"} and "quantize" in json.dumps(manifest["recipe"])
    assert command(capsys, "inspect", out)[0] == 0
    assert command(capsys, "inspect", out, "--text")[1] == (out / "module.ir").read_text(encoding="utf-8") + "\n"
    code, _, err = command(capsys, "run", out, "hello")
    assert code == 1 and "does not generate text" in err
    code, _, err = command(capsys, "compile", out, "--out", tmp_path / "again")
    assert code == 1 and "is an artifact, compiled already" in err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    code, _, err = command(capsys, "compile", network, "--no-check", "--out", tmp_path / "taken")
    assert code == 1 and "is not empty and holds no artifact" in err


@pytest.mark.full
def test_run_and_bench(capsys: Captured, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = document(capsys, "run", artifact, "a few", "--max-new-tokens", 5)
    code, out, err = command(capsys, "run", artifact, "a few", "--max-new-tokens", 5)
    assert (code, out, err) == (0, found["text"] + "\n", "")
    stop = found["text"][2]
    code, out, _ = command(capsys, "run", artifact, "a few", "--max-new-tokens", 5, "--stop", stop, "--threads", 1)
    assert out == found["text"][: found["text"].find(stop)] + "\n"
    code, _, err = command(capsys, "run", artifact, "")
    assert code == 1 and "the prompt is empty" in err
    speed = document(capsys, "bench", artifact, "--prompt", 20, "--tokens", 4, "--repeats", 1)
    assert set(speed) == {"prefill", "decode"} and min(speed.values()) > 0
    code, _, err = command(capsys, "bench", artifact, "--prompt", 300)
    assert code == 1 and "exceed the context of this model, 256 tokens" in err


def test_calibration_needs_a_recipe_and_a_workspace_needs_calibration(
    capsys: Captured, network: Path, recipe: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "artifact")
    code, _, err = command(capsys, "compile", network, "--recipe", recipe, "--workspace", tmp_path / "w", *out)
    assert code == 1 and "give --calibration too" in err
    text = tmp_path / "text.txt"
    text.write_text("some words")
    code, _, err = command(capsys, "compile", network, "--recipe", recipe, "--calibration", text, *out)
    assert code == 1 and "the model has no tokenizer for a calibration text" in err
