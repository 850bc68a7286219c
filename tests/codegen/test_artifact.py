"""Artifacts on disk: written whole or not at all, and refused when they are not what was written."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from planish.codegen.artifact import Artifact
from planish.codegen.build import build
from planish.codegen.runtime import device, machine
from planish.codegen.runtime.executable import open_artifact
from planish.codegen.runtime.manifest import MANIFEST
from planish.ir import Builder, InputError, Interpreter, Module, TensorType, dense_param, symbol
from planish.ir.ops import Linear, Slot, aten
from planish.testing.compiled import host

TOKENS = symbol("S")


def small_module() -> Module:
    weight = dense_param("weight", torch.arange(15, dtype=torch.float32).reshape(3, 5) - 7)
    odd = dense_param("odd", torch.tensor([1.5, -2.0, 0.25]))
    module = Module({}, {p.name: p for p in (weight, odd)}, {}, {"kind": "plain", "sizes": (3, 5)})
    builder = Builder("forward")
    x = builder.input("x", TensorType(torch.float32, (TOKENS, 5)))
    y = builder.emit(Linear(), x, module.param_ref("weight"), None)
    y = builder.emit(aten("mul.Tensor", Slot(0), Slot(1)), y, module.param_ref("odd"))
    return module.with_function(builder.finish([y], ["y"]))


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return build(small_module(), host(), recipe=[{"name": "none"}])


@pytest.fixture
def saved(artifact: Artifact, tmp_path: Path) -> Path:
    return artifact.save(tmp_path / "saved")


def test_what_was_saved_runs(saved: Path) -> None:
    x = torch.arange(20, dtype=torch.float32).reshape(4, 5) - 9
    want = Interpreter(small_module()).run("forward", [x])[0]
    program = open_artifact(saved)
    assert torch.equal(program(x), want)
    assert torch.equal(program(x=x), want)
    result = program(x.numpy())
    assert isinstance(result, np.ndarray)
    assert np.array_equal(result, want.numpy())


def test_a_tensor_at_any_address_and_stride_will_do(saved: Path) -> None:
    memory = torch.arange(64, dtype=torch.float32)
    program = open_artifact(saved)
    for x in (memory[1:16].view(3, 5), memory[:45].view(3, 15)[:, ::3], memory[3:8].expand(2, 5)):
        assert torch.equal(program(x), Interpreter(small_module()).run("forward", [x.clone()])[0])


def test_the_manifest_says_what_is_there(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    assert manifest["metadata"] == {"kind": "plain", "sizes": [3, 5]}
    assert manifest["recipe"] == [{"name": "none"}]
    assert sorted(manifest["files"]) == ["kernels.so", "module.ir", "weights.safetensors"]
    steps = manifest["report"]["functions"]["forward"]["steps"]
    assert [s["operations"] for s in steps if s["kernel"] != "view"] == [["linear"], ["aten.mul.Tensor"]]
    assert all(s["bytes_here"] > 0 and s["floor_seconds"] > 0 for s in steps if s["kernel"] != "view")


def test_weights_are_aligned_and_any_reader_opens_them(saved: Path) -> None:
    with safe_open(saved / "weights.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("odd"), torch.tensor([1.5, -2.0, 0.25]))
    content = (saved / "weights.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    starts = [e["data_offsets"][0] for name, e in header.items() if not name.startswith(".padding")]
    assert all((8 + length + start) % 64 == 0 for start in starts)


@pytest.mark.parametrize("name", ["kernels.so", "weights.safetensors", "module.ir"])
def test_a_changed_byte(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[-1] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is not the file that was written \(its SHA-256 differs\)"):
        open_artifact(saved)


def test_a_truncated_file(saved: Path) -> None:
    content = (saved / "weights.safetensors").read_bytes()
    (saved / "weights.safetensors").write_bytes(content[:-8])
    with pytest.raises(InputError, match=rf"has {len(content) - 8} bytes, but {len(content)} were written"):
        open_artifact(saved, check=False)


def test_a_missing_file(saved: Path) -> None:
    (saved / "kernels.so").unlink()
    with pytest.raises(InputError, match=r"lacks its file kernels\.so"):
        open_artifact(saved)


def _edit(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(("part", "what"), [("planish", "planish"), ("format", "artifact format"), ("tvm", "TVM")])
def test_another_version(saved: Path, part: str, what: str) -> None:
    _edit(saved, lambda manifest: manifest.update({part: "9.9"}))
    with pytest.raises(
        InputError, match=rf"was written by {what} 9\.9, but this is {what} .*: compile the model again"
    ):
        open_artifact(saved)


@pytest.mark.parametrize(("content", "sentence"), [("{", "is damaged"), ("[]", "is no manifest of an artifact")])
def test_a_damaged_manifest(saved: Path, content: str, sentence: str) -> None:
    (saved / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=sentence):
        open_artifact(saved)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no artifact: manifest\.json cannot be read"):
        open_artifact(tmp_path / "nothing")


def test_a_processor_that_lacks_a_feature(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor : 0\nflags : fpu sse sse2\n")
    monkeypatch.setattr(device, "cpu_features", lambda: machine.cpu_features(listed))
    with pytest.raises(InputError, match=r"compiled for a processor with .*fma.*, which this machine's lacks"):
        open_artifact(saved)


def _failing(artifact: Artifact, name: str, code: int) -> Artifact:
    """The artifact with a disk that fails while a file is written, after some bytes of it."""

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(code, "No space left on device")

    return Artifact(artifact.manifest, {**artifact.writers, name: write})


@pytest.mark.parametrize("name", ["kernels.so", "weights.safetensors", "module.ir"])
def test_a_full_disk_leaves_nothing(artifact: Artifact, tmp_path: Path, name: str) -> None:
    target = tmp_path / "saved"
    with pytest.raises(InputError, match=r"cannot save the artifact to .*: the disk is full; nothing was written"):
        _failing(artifact, name, errno.ENOSPC).save(target)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_artifact(artifact: Artifact, saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(InputError, match="the disk is full"):
        _failing(artifact, "kernels.so", errno.ENOSPC).save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_again_replaces(artifact: Artifact, saved: Path) -> None:
    (saved / "extra.txt").write_text("from an older artifact")
    artifact.save(saved)
    assert sorted(p.name for p in saved.iterdir()) == [
        "kernels.so",
        "manifest.json",
        "module.ir",
        "weights.safetensors",
    ]
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_of_something_else_is_left_alone(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no artifact"):
        artifact.save(tmp_path)
    with pytest.raises(InputError, match="exists and is no folder"):
        artifact.save(tmp_path / "precious.txt")


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ([torch.zeros(2, 5, dtype=torch.float64)], "'x' of forward is f64, but f32 was declared"),
        ([torch.zeros(2, 4)], "axis 1 differs"),
        ([torch.zeros(5)], "the ranks differ"),
        ([torch.zeros(0, 5)], r"axis 0 \(S\) must be at least 1"),
        ([], r"takes 1 tensors \(x\), but got 0"),
        ([[1.0, 2.0]], "must be a torch tensor or a numpy array, not list"),
    ],
)
def test_tensors_that_do_not_fit(saved: Path, tensors: list[Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_artifact(saved)(*tensors)


def test_names_that_do_not_fit(saved: Path) -> None:
    with pytest.raises(InputError, match="takes the tensors x, but got y"):
        open_artifact(saved)(y=torch.zeros(1, 5))
