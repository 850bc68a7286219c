"""A failure can be run again from its folder, and its pass found in a pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from planish.ir import Computed, Dense, InFile, InputError, Module, Node, Param, structural_hash
from planish.ir.ops import Slot, aten
from planish.passes.bisect import bisect
from planish.passes.canonicalise import Canonicalise
from planish.passes.common_subexpressions import CommonSubexpressions
from planish.passes.dead_code import DeadCode
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Pass, PassError, PassResult
from planish.passes.quantize import Quantize
from planish.passes.reproducer import main, read_reproducer, rerun, write_reproducer
from planish.passes.selection import Rule
from planish.testing.tiny_decoder import tiny_decoder


class Forgetful(Pass):
    """Drops the residual of the first sum."""

    name: ClassVar[str] = "forgetful"

    def apply(self, module: Module, context: Context) -> PassResult:
        forward = module.functions["forward"]
        at = next(n for n, node in enumerate(forward.nodes) if node.op == aten("add.Tensor", Slot(0), Slot(1)))
        old = forward.nodes[at]
        nodes = list(forward.nodes)
        nodes[at] = Node(aten("clone.default", Slot(0)), (old.inputs[1],), old.outputs, "planted")
        return PassResult(
            module.with_function(
                type(forward)("forward", forward.inputs, tuple(nodes), forward.outputs, forward.output_names)
            ),
            1,
        )


def failing(tmp_path: Path, module: Module) -> Path:
    with pytest.raises(PassError) as caught:
        PassManager([CommonSubexpressions(), Forgetful()], reproducers=tmp_path).run(module)
    assert caught.value.reproducer is not None and str(caught.value.reproducer) in str(caught.value)
    return caught.value.reproducer


def test_a_failure_runs_again(tmp_path: Path) -> None:
    module = tiny_decoder()
    folder = failing(tmp_path, module)
    assert folder == tmp_path / "forgetful"
    again, document = read_reproducer(folder)
    assert "breaks its contract" in document["message"]
    assert again.functions["forward"].output_names == module.functions["forward"].output_names
    assert all(torch.equal(again.params[n].value(), p.value()) for n, p in module.params.items())
    with pytest.raises(PassError, match="breaks its contract") as second:
        rerun(folder, [Forgetful()])
    assert second.value.reproducer is None, "there is one already"
    with pytest.raises(InputError, match="no pass is called 'forgetful'"):
        rerun(folder)
    assert failing(tmp_path, module) == tmp_path / "forgetful-1", "an earlier reproducer is kept"


def test_weights_in_files_are_referred_to(tmp_path: Path) -> None:
    module = tiny_decoder()
    save_file({"stored": module.params["norm"].value()}, tmp_path / "model.safetensors")
    norm = module.params["norm"]
    stored = Param("norm", norm.type, norm.encoding, InFile(tmp_path / "model.safetensors", {"values": "stored"}))
    computed = Param("0.q", module.params["0.q"].type, Dense(torch.float32), Computed(module.params["0.q"].storage))
    module = module.with_params([stored, computed])
    folder = write_reproducer(tmp_path / "r", module, [DeadCode()], 3, "message")
    document = json.loads((folder / "reproducer.json").read_text())
    assert document["parameters"]["norm"]["file"] == str((tmp_path / "model.safetensors").resolve())
    assert document["parameters"]["0.q"]["file"] == "weights.safetensors"
    again, _ = read_reproducer(folder)
    assert torch.equal(again.params["norm"].value(), norm.value())
    _, report = rerun(folder)
    assert [r.name for r in report.passes] == ["dead-code"]


@pytest.mark.full
def test_the_command(tmp_path: Path) -> None:
    broken = Quantize(
        group=4, format=None, rules=(Rule(kind="linear", format=2),), metric="relative_error", budget=1e-9
    )
    with pytest.raises(PassError) as caught:
        PassManager([broken], reproducers=tmp_path).run(tiny_decoder(vocabulary=12))
    command = [sys.executable, "-m", "planish.passes.reproducer"]
    ran = subprocess.run([*command, str(caught.value.reproducer)], capture_output=True, text=True)
    assert ran.returncode == 1 and "above the budget of 1e-09" in ran.stderr
    assert main([str(tmp_path)]) == main([]) == 2
    assert main([str(write_reproducer(tmp_path / "fine", tiny_decoder(), [DeadCode()], 0, "message"))]) == 0


@pytest.mark.parametrize("damage", ["missing", "format", "text"])
def test_what_is_no_reproducer(tmp_path: Path, damage: str) -> None:
    folder = write_reproducer(tmp_path / "r", tiny_decoder(), [DeadCode()], 0, "message")
    if damage == "missing":
        (folder / "module.ir").unlink()
    else:
        (folder / "reproducer.json").write_text('{"format": 99}' if damage == "format" else "no json")
    with pytest.raises(InputError):
        read_reproducer(folder)


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("planish.passes.reproducer.save_file", full)
    with pytest.raises(OSError):
        write_reproducer(tmp_path / "r", tiny_decoder(), [DeadCode()], 0, "message")
    assert list(tmp_path.iterdir()) == []


def test_bisect_finds_the_pass() -> None:
    module = tiny_decoder()
    pipeline: list[Pass] = [Canonicalise(), CommonSubexpressions(), Forgetful(), DeadCode(), Canonicalise()]
    culprit = bisect(module, pipeline)
    assert culprit is not None and culprit.number == 2 and culprit.step == Forgetful()
    assert structural_hash(culprit.before) != structural_hash(culprit.after)
    assert bisect(module, [p for p in pipeline if not isinstance(p, Forgetful)]) is None


def test_bisect_with_a_question_of_its_own() -> None:
    module = tiny_decoder()
    asked: list[int] = []

    def lacks_sums(candidate: Module) -> bool:
        asked.append(len(candidate.functions["forward"].nodes))
        return sum(n.op == aten("add.Tensor", Slot(0), Slot(1)) for n in candidate.functions["forward"].nodes) < 4

    culprit = bisect(module, [CommonSubexpressions()] * 6 + [Forgetful()] + [DeadCode()] * 6, lacks_sums)
    assert culprit is not None and culprit.number == 6
    assert len(asked) == culprit.tested <= 6
    with pytest.raises(InputError, match="before any pass has run"):
        bisect(module, [DeadCode()], lambda m: True)
