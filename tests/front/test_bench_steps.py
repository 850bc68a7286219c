"""`planish bench --steps`: every step is timed, beside the figures of the report; no time is asserted."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import planish
from planish.cli.app import run
from planish.cli.output import table
from planish.codegen.build import build
from planish.codegen.runtime.steps import time_steps
from planish.ir import Builder, InputError, Module, TensorType, dense_param
from planish.ir.ops import Embedding, Linear, Slot, aten
from planish.speed import measure_steps
from planish.testing.compiled import host
from planish.testing.tiny_decoder import tiny_decoder

Captured = pytest.CaptureFixture[str]


pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a decoder with a `forward` of linear maps, attention, views and fused groups."""
    return build(tiny_decoder(), host()).save(tmp_path_factory.mktemp("steps") / "artifact")


def command(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def report_of(artifact: Path, function: str) -> dict[str, Any]:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    return cast("dict[str, Any]", manifest["report"]["functions"][function])


def facts(row: dict[str, Any]) -> tuple[object, ...]:
    """What a row of the report states and a measured step repeats."""
    names = tuple(call["function"] for call in row["calls"])
    return (tuple(row["operations"]), row["kernel"], names, row["bytes_here"], row["work_here"], row["floor_seconds"])


def test_calls_cover_all_steps(decoder: Path) -> None:
    """Each step that is no view says what it calls, and every tensor is made before it is read."""
    report, made = report_of(decoder, "forward"), set[str]()
    assert all(bool(row["calls"]) == (row["kernel"] != "view") for row in report["steps"])
    for call in (c for row in (*report["steps"], *report["copies"]) for c in row["calls"]):
        names = [text.rpartition(": ")[0] for text in call["inputs"]]
        assert {n for n in names if n.startswith("value ")} <= made
        made |= {text.rpartition(": ")[0] for text in call["results"]}


def test_every_step_is_timed(decoder: Path) -> None:
    report = report_of(decoder, "forward")
    times = time_steps(planish.load(decoder), "forward", repeats=1)
    found = [(t.operations, t.kernel, t.functions, t.bytes, t.work, t.floor_seconds) for t in times]
    assert found == [facts(row) for row in (*report["steps"], *report["copies"]) if row["calls"]]
    assert all(t.seconds > 0 and t.share == t.floor_seconds / t.seconds for t in times)
    assert any(n.startswith("kernel_attention") for t in times for n in t.functions)


def test_a_result_that_is_an_input_is_a_copy(tmp_path: Path) -> None:
    """What is copied after all steps is timed, too."""
    builder = Builder("forward")
    x = builder.input("x", TensorType(torch.bfloat16, (4, 6)))
    module = Module({"forward": builder.finish([x], ["y"])}, {})
    program = planish.load(build(module, host()).save(tmp_path / "artifact"))
    (step,) = time_steps(program, "forward", repeats=1)
    assert (step.kernel, step.operations, step.bytes) == ("copy", (), 2 * 4 * 6 * 2) and step.seconds > 0


def test_inputs_keep_their_values(tmp_path: Path) -> None:
    """Tokens that are read after other memory has become free are still tokens: an embedding refuses anything else."""
    params = [dense_param("w", torch.full((2, 2), 1e30)), dense_param("table", torch.zeros(3, 2))]
    module = Module({}, {p.name: p for p in params})
    builder = Builder("forward")
    x, ids = builder.input("x", TensorType(torch.float32, (8, 2))), builder.input("ids", TensorType(torch.int64, (8,)))
    h = builder.emit(aten("exp.default", Slot(0)), x)
    for _ in range(3):
        h = builder.emit(Linear(), h, module.param_ref("w"), None)
    rows = builder.emit(Embedding(), ids, module.param_ref("table"))
    function = builder.finish([h, rows], ["h", "rows"])
    program = planish.load(build(replace(module, functions={"forward": function}), host()).save(tmp_path / "artifact"))
    assert len(time_steps(program, "forward", repeats=2)) == 5


@pytest.mark.full
def test_sizes_are_those_a_model_can_have() -> None:
    """The report's figures hold for sequences that fit the context and what was traced."""
    module = tiny_decoder()
    for metadata, tokens in ({}, 512), ({"context_length": 77}, 77), ({"dim_ranges": (("S", 1, 9),)}, 9):
        report = build(replace(module, metadata=metadata), host()).report
        assert report["functions"]["forward"]["sizes"] == {"B": 1, "S": tokens}


def test_the_command(capsys: Captured, decoder: Path) -> None:
    code, out, err = command(capsys, "bench", decoder, "--steps", "--repeats", 1, "--threads", 1, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["function"] == "forward" and found["sizes"] == {"B": 1, "S": 512}
    seconds = [s["seconds"] for s in found["steps"]]
    assert seconds == sorted(seconds, reverse=True) and found["total"]["seconds"] == pytest.approx(sum(seconds))
    rows = [row for row in report_of(decoder, "forward")["steps"] if row["calls"]]
    assert Counter((s["kernel"], s["bytes"], s["floor_seconds"]) for s in found["steps"]) == Counter(
        (row["kernel"], row["bytes_here"], row["floor_seconds"]) for row in rows
    )
    code, out, err = command(capsys, "bench", decoder, "--steps", "--repeats", 1)
    assert (code, out) == (0, "") and "Steps of forward (B=1, S=512)" in err and "all steps" in err


def test_tables_show_brackets(capsys: Captured) -> None:
    """A kernel's variant is no markup."""
    capsys.readouterr()
    table("Kernels", ("kernel",), [("linear[int4]",)])
    assert "linear[int4]" in capsys.readouterr().err


@pytest.mark.full
def test_every_program_of_a_language_model(artifact: Path) -> None:
    program = planish.load(artifact)
    assert measure_steps(program, repeats=1)["function"] == "decode"
    for name in program.programs:
        found = measure_steps(program, function=name, repeats=1)
        assert len(found["steps"]) == sum(bool(row["calls"]) for row in report_of(artifact, name)["steps"])
        assert all(s["seconds"] > 0 for s in found["steps"])


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--plot", "x.png"), 2, "--function and --plot need --steps"),
        (("--steps", "--device", "rpc:127.0.0.1:9"), 1, "on the processor of this process alone"),
        (("--steps", "--function", "decode"), 1, "this artifact has no function 'decode'; it has forward"),
        (("--steps", "--repeats", "0"), 1, "at least 1 repeat"),
        (("--steps", "--plot", "x.txt"), 1, "end it in .png or .svg"),
        (("--steps", "--plot", "nowhere/x.png"), 1, "nowhere is no folder"),
    ],
)
def test_refused(capsys: Captured, decoder: Path, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    got, out, err = command(capsys, "bench", decoder, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_elsewhere_is_refused(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = planish.load(decoder)
    monkeypatch.setattr(program, "device", object())
    with pytest.raises(InputError, match="on the processor of this process alone"):
        time_steps(program, "forward")


def test_a_report_without_calls_is_refused(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that was written before calls were recorded loads, but cannot be timed."""
    program = planish.load(decoder)
    monkeypatch.delitem(program.manifest["report"]["functions"]["forward"], "copies")
    with pytest.raises(InputError, match="compile the model again"):
        time_steps(program, "forward")


@pytest.mark.parametrize(("name", "begin"), [("roofline.png", b"\x89PNG"), ("roofline.svg", b"<?xml")])
def test_the_plot_is_a_picture(capsys: Captured, decoder: Path, tmp_path: Path, name: str, begin: bytes) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    path = tmp_path / name
    code, _, err = command(capsys, "bench", decoder, "--steps", "--repeats", 1, "--plot", path)
    assert code == 0, err
    assert path.read_bytes().startswith(begin) and list(tmp_path.iterdir()) == [path]


def test_no_plot_without_matplotlib(
    capsys: Captured, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *p: None if name == "matplotlib" else find(name, *p))
    code, out, err = command(capsys, "bench", decoder, "--steps", "--plot", tmp_path / "roofline.png")
    assert (code, out) == (1, "") and "pip install planish[plot]" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
