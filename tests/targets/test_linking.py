"""A machine without a linker, or with one that fails: one sentence, and nothing is left half-written."""

from __future__ import annotations

import importlib.util
import shutil
import stat
from pathlib import Path

import pytest
import torch

from planish.codegen.build import build
from planish.ir import InputError, Module, TensorType
from planish.ir.ops import Slot, aten
from planish.targets import open_target
from planish.testing.compiled import one_call


def _module() -> Module:
    call = aten("neg.default", Slot(0))
    return Module({"forward": one_call("forward", call, [TensorType(torch.float32, (3,))])})


ADVICE = {
    "host": "install a C compiler, or `pip install ziglang`",
    "arm": "`pip install ziglang`, or install gcc-aarch64-linux-gnu",
}


@pytest.mark.parametrize("name", sorted(ADVICE))
def test_no_linker(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = build(_module(), open_target(name))
    monkeypatch.setattr(shutil, "which", lambda *given, **more: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *given: None)
    with pytest.raises(InputError) as caught:
        artifact.save(tmp_path / "artifact")
    assert str(caught.value) == f"kernels.so cannot be linked: no linker was found; {ADVICE[name]}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(ADVICE))
def test_a_linker_that_fails_is_quoted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = build(_module(), open_target(name))
    broken = tmp_path / "bin" / "cc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'no space left for symbols' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda *given, **more: str(broken))
    monkeypatch.setattr(importlib.util, "find_spec", lambda *given: None)
    with pytest.raises(InputError, match=r"kernels\.so cannot be linked: .*cc says: no space left for symbols"):
        artifact.save(tmp_path / "artifact")
    assert [p.name for p in tmp_path.iterdir()] == ["bin"]
