"""What cannot be compiled for CUDA or run there is refused with one sentence that says what to do."""

from __future__ import annotations

import ctypes
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planish.codegen.artifact import Artifact
from planish.codegen.build import build
from planish.codegen.runtime import cuda
from planish.codegen.runtime.cuda_graph import CUDART
from planish.codegen.runtime.device import LocalDevice
from planish.codegen.runtime.executable import open_artifact
from planish.ir import InputError, Module, PlanishError, TensorType, UnsupportedError
from planish.ir.ops import Slot, aten
from planish.targets import open_target
from planish.targets.cuda import compiler
from planish.targets.cuda.compiler import Resources, read_resources
from planish.testing.compiled import one_call

REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kernel_first' for 'sm_90'
ptxas info    : Function properties for kernel_first
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 3.419 ms
ptxas info    : Compiling entry function 'kernel_second' for 'sm_90'
ptxas info    : Function properties for kernel_second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def refusal(action: Callable[[], object], kind: type[Exception] = InputError) -> str:
    """The sentence of an error."""
    with pytest.raises(PlanishError) as caught:
        action()
    assert type(caught.value) is kind
    return str(caught.value)


def built() -> Artifact:
    call = aten("neg.default", Slot(0))
    module = Module({"forward": one_call("forward", call, [TensorType(torch.float32, (3,))])})
    return build(module, open_target("cuda:sm_80"))


def artifact(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact for CUDA that nothing had to be compiled for; its kernels are never looked at."""
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile_cuda", lambda source, arch: (b"no code", []))
        return built().save(folder / "artifact")


@pytest.fixture
def without_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda *given, **more: None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda *given, **more: {"purelib": str(tmp_path)})


def write_nvcc(place: Path) -> Path:
    """An nvcc that fails."""
    place.mkdir(parents=True)
    nvcc = place / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'kernels.cu(7): error: no such instruction' >&2\nexit 2\n")
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cuda:sm_91", "there is no CUDA processor 'sm_91'; did you mean 'sm_90'?"),
        ("cuda:hopper", "there is no CUDA processor 'hopper'; known are sm_80, sm_89, sm_90, sm_100"),
        ("cudda", "there is no target 'cudda'; did you mean 'cuda'?"),
    ],
)
def test_unknown_names(text: str, sentence: str) -> None:
    assert refusal(lambda: open_target(text)) == sentence


@pytest.mark.usefixtures("without_nvcc")
def test_no_nvcc() -> None:
    assert refusal(built, UnsupportedError) == (
        "compiling for CUDA needs nvcc, which is neither in CUDA_HOME nor on the path: pip install planish[cuda]"
    )


@pytest.mark.usefixtures("without_nvcc")
def test_where_nvcc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = write_nvcc(tmp_path / "nvidia" / "cu13" / "bin")
    assert compiler.find_nvcc() == packaged
    chosen = write_nvcc(tmp_path / "toolkit" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert compiler.find_nvcc() == chosen


@pytest.mark.usefixtures("without_nvcc")
def test_an_nvcc_that_fails_is_quoted_and_the_next_build_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = write_nvcc(tmp_path / "nvidia" / "cu13" / "bin")
    assert refusal(built, PlanishError) == (
        "nvcc cannot compile the kernels for sm_80:\nkernels.cu(7): error: no such instruction\n"
    )
    nvcc.unlink()
    refusal(built, UnsupportedError)
    artifact(tmp_path, monkeypatch)


def test_an_artifact_on_a_device_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact(tmp_path, monkeypatch)
    assert refusal(lambda: open_artifact(folder, device=LocalDevice())) == (
        "this artifact was compiled for cuda:sm_80 and cannot run on a device of the kind 'cpu': "
        "compile the model again for that device"
    )


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries that are asked for, on a machine without any of CUDA's."""
    asked: list[str] = []
    load = ctypes.CDLL

    def loading(name: str, *mode: int) -> object:
        if "cud" not in name:
            return load(name, *mode)
        asked.append(name)
        raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", loading)
    cuda.load_cuda_runtime.cache_clear()
    return asked


def test_a_machine_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[str]) -> None:
    folder = artifact(tmp_path, monkeypatch)
    assert refusal(lambda: open_artifact(folder)) == (
        "this machine cannot run CUDA artifacts: libcuda.so.1: cannot open shared object file: No such file or directory; "
        "libcuda comes with NVIDIA's driver, libcudart with `pip install planish[cuda]`"
    )


def test_the_runtime_of_the_package_is_tried_where_the_machine_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[str]
) -> None:
    packaged = tmp_path / "nvidia" / "cu13" / "lib" / CUDART
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda *given, **more: {"purelib": str(tmp_path)})
    refusal(cuda.load_cuda_runtime)
    assert loaded[:2] == [CUDART, str(packaged)]
    assert [Path(name).name for name in loaded[2:]] == ["libtvm_runtime_cuda.so"]


def test_resources_of_a_report() -> None:
    assert read_resources(REPORT) == [
        Resources("kernel_first", registers=255, shared=4096, stack=16, spill_stores=8, spill_loads=12),
        Resources("kernel_second", registers=8, shared=0, stack=0, spill_stores=0, spill_loads=0),
    ]
    assert read_resources("") == []


def test_a_report_without_figures() -> None:
    cut = REPORT[: REPORT.index("ptxas info    : Used 8")]
    assert refusal(lambda: read_resources(cut), PlanishError) == "ptxas reports no resources of kernel_second"


def test_machine_code_is_spelt_and_read() -> None:
    code = bytes(range(256))
    assert cuda.machine_code(cuda.spell(code)) == code
    with pytest.raises(RuntimeError, match="holds CUDA C\\+\\+ and no machine code: build it with planish"):
        cuda.machine_code('extern "C" __global__ void kernel() {}')
