"""The runner of examples/runner: what planish's own runtime computes, in a process that can import none of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from planish.codegen.build import build
from planish.codegen.runtime.executable import open_artifact
from planish.codegen.runtime.library import find_runtime
from planish.ir import Module
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.targets import open_target
from planish.targets.arm.emulator import python
from planish.testing.compiled import host
from planish.testing.emulated import needs_arm
from planish.testing.tiny_decoder import tiny_decoder

pytestmark = pytest.mark.full

RUNNER = Path(__file__).parents[2] / "examples" / "runner" / "run.py"
FORBIDDEN = ("planish", "tvm", "torch")
PROMPT, NEW_TOKENS = [1, 5, 3, 7, 2], 70
"""More tokens in all than a first cache holds."""

ALONE = f"""
import runpy, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN}:
            raise ImportError(f"{{name}} is not here")

sys.meta_path.insert(0, Forbidden())
for name in {FORBIDDEN}:
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{{name}} can be imported")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return DerivePrograms().apply(tiny_decoder(), Context()).module


@pytest.fixture(scope="module")
def folder(module: Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(module, host()).save(tmp_path_factory.mktemp("runner") / "artifact")


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TVM_LIBRARY_PATH": str(find_runtime().parent)}
    command = [sys.executable, "-P", "-c", ALONE, str(RUNNER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_tokens(folder: Path) -> None:
    program: Any = open_artifact(folder)
    done = _run(folder, "--ids", ",".join(map(str, PROMPT)), "--new-tokens", NEW_TOKENS)
    assert done.returncode == 0, done.stderr
    want = program.generate_ids(PROMPT, max_new_tokens=NEW_TOKENS, stop_tokens=())
    assert [int(token) for token in done.stdout.split(",")] == want
    assert len(set(want)) > 1, "the model repeats itself, so the test shows nothing"


def test_logits(folder: Path, tmp_path: Path) -> None:
    ids, mask = np.array([PROMPT, PROMPT[::-1]]), np.ones((2, len(PROMPT)), np.bool_)
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "mask.npy", mask)
    done = _run(folder, tmp_path / "ids.npy", tmp_path / "mask.npy", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), open_artifact(folder)(ids, mask))


def test_tensors_of_another_dtype_are_refused(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([PROMPT], np.int32))
    done = _run(folder, tmp_path / "ids.npy", tmp_path / "ids.npy")
    assert done.returncode == 1 and "'name': 'input_ids', 'type': 'i64[B, S]'" in done.stderr


def test_it_runs_as_it_stands(folder: Path) -> None:
    """Without being told where TVM's runtime is, and whatever else is installed."""
    assert importlib.util.find_spec("tvm") is not None
    environment = {name: value for name, value in os.environ.items() if name != "TVM_LIBRARY_PATH"}
    command = [sys.executable, "-P", str(RUNNER), str(folder), "--ids", "1,2", "--new-tokens", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and len(done.stdout.split(",")) == 3, done.stderr


class TestArm:
    """On an emulated machine that has numpy, tvm_ffi and TVM's runtime, and neither planish nor torch."""

    pytestmark: ClassVar[Any] = needs_arm

    def test_tokens(self, folder: Path, module: Module, tmp_path: Path) -> None:
        program: Any = open_artifact(folder)
        there = build(module, open_target("arm")).save(tmp_path / "artifact")
        command, environment = python("neoverse-n1")
        command += [str(RUNNER), str(there), "--ids", ",".join(map(str, PROMPT)), "--new-tokens", "8"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        want = program.generate_ids(PROMPT, max_new_tokens=8, stop_tokens=())
        assert [int(token) for token in done.stdout.split(",")] == want
