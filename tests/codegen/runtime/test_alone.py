"""A run needs TVM's runtime library and numpy: neither TVM's compiler nor torch may be loaded, nor the weights copied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from planish.codegen.build import build
from planish.ir import Builder, Module, TensorType, dense_param
from planish.ir.ops import Embedding
from planish.testing.compiled import host

ENTRIES, WIDTH = 1 << 15, 512
PROGRAM = """
import json, re, sys
from pathlib import Path

import numpy as np

from planish.codegen.runtime.executable import open_artifact

program = open_artifact(sys.argv[1], check=False)
result = program(np.array([[5, 7]]))
memory = dict(re.findall(r"(\\w+):\\s+(\\d+) kB", Path("/proc/self/status").read_text()))
maps = Path("/proc/self/maps").read_text()
print(json.dumps({
    "sum": float(result.sum()),
    "modules": sorted({"torch", "tvm", "sympy", "transformers"} & set(sys.modules)),
    "libraries": [name for name in ("libtvm_compiler", "libtorch", "libtvm_runtime") if name in maps],
    "peak": 1024 * int(memory["VmHWM"]),
    "own": 1024 * int(memory["RssAnon"]),
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 MiB of table, of which a call reads two rows."""
    table = dense_param("table", torch.ones(ENTRIES, WIDTH))
    builder = Builder("forward")
    ids = builder.input("ids", TensorType(torch.int64, (1, 2)))
    y = builder.emit(Embedding(), ids, Module({}, {"table": table}).param_ref("table"))
    module = Module({"forward": builder.finish([y], ["y"])}, {"table": table})
    return build(module, host()).save(tmp_path_factory.mktemp("alone") / "artifact")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list mapped libraries")
def test_a_run_loads_what_it_needs(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["sum"] == 2 * WIDTH
    assert seen["modules"] == []
    assert seen["libraries"] == ["libtvm_runtime"]
    # Mapped weights are the file's memory, not the process's.
    assert seen["own"] < 4 * ENTRIES * WIDTH
    assert seen["peak"] < 4 * ENTRIES * WIDTH + (200 << 20)
