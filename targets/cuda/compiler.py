"""nvcc: where it is, how it is called, and what ptxas says of each kernel.

TVM hands over CUDA C++ and takes back machine code for one architecture. Arithmetic is that of IEEE 754: no fast division or
square root, no subnormals taken for zero, no product and sum joined where the source has two operations.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tvm_ffi

from planish.codegen.runtime.cuda import spell
from planish.ir import PlanishError, UnsupportedError
from planish.targets.cuda.block import ARENA


@dataclass(frozen=True)
class Resources:
    """What one kernel needs of a multiprocessor: registers of a thread; bytes of shared memory, stack and spills."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spilled(self) -> int:
        """Bytes that go to memory and back for want of registers."""
        return self.spill_stores + self.spill_loads


def find_nvcc() -> Path:
    """nvcc: of CUDA_HOME, of the package nvidia-cuda-nvcc, or on the path.

    Raises:
        UnsupportedError: when there is none.
    """
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    places += sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/bin"))
    for place in places:
        if (place / "nvcc").is_file():
            return place / "nvcc"
    found = shutil.which("nvcc")
    if found is None:
        raise UnsupportedError(
            "compiling for CUDA needs nvcc, which is neither in CUDA_HOME nor on the path: pip install planish[cuda]"
        )
    return Path(found)


def compile_cuda(source: str, arch: str) -> tuple[bytes, list[Resources]]:
    """Machine code for `arch` ("sm_90"), and what each kernel of it needs.

    ptxas may spill a few registers to make room for one block more, or because it loads too much ahead. What spills is
    compiled again with other instructions, and the code that spills least is taken.

    Raises:
        UnsupportedError: without nvcc.
        PlanishError: with nvcc's words, when it fails.
    """
    code, resources = _run_nvcc(source, arch)
    spilling = [r.kernel for r in resources if r.spilled]
    alone = _with_all_registers(source, spilling)
    for text, options in ((alone, []), (source, [_CAREFUL]), (alone, [_CAREFUL])):
        if not any(r.spilled for r in resources):
            break
        other = _run_nvcc(text, arch, *options)
        if sum(r.spilled for r in other[1]) < sum(r.spilled for r in resources):
            code, resources = other
    return code, resources


_CAREFUL = "-Xptxas=--register-usage-level=10"


def _with_all_registers(source: str, kernels: Sequence[str]) -> str:
    """The source, with one block to a multiprocessor declared to be enough for some kernels."""
    for kernel in kernels:
        source = re.sub(rf"__launch_bounds__\((\d+)\) {kernel}\(", rf"__launch_bounds__(\1, 1) {kernel}(", source)
    return source


def _run_nvcc(source: str, arch: str, *options: str) -> tuple[bytes, list[Resources]]:
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory() as folder:
        text, code = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        text.write_text(source, encoding="utf-8")
        always = ["--cubin", "-O3", "-std=c++17", "--fmad=false", "-Xptxas=-v", f"-arch={arch}"]
        command = [str(nvcc), *always, *options, "-o", str(code), str(text)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PlanishError(f"nvcc cannot compile the kernels for {arch}:\n{done.stdout}{done.stderr}")
        shared = shared_bytes(source)
        used = [replace(r, shared=r.shared + shared.get(r.kernel, 0)) for r in read_resources(done.stderr)]
        return code.read_bytes(), used


_KERNEL = re.compile(r"__launch_bounds__\(\d+(?:, 1)?\) (\w+)\([^;{]*\{")
_ARENA = re.compile(rf"\b{ARENA}(\d+)_ptr\[\]")


def shared_bytes(source: str) -> dict[str, int]:
    """The shared memory of each kernel that sizes it when it is launched."""
    found = {}
    _, *parts = _KERNEL.split(source)
    for kernel, text in zip(parts[::2], parts[1::2]):
        if arena := _ARENA.search(text):
            found[kernel] = int(arena[1])
    return found


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def read_resources(report: str) -> list[Resources]:
    """The kernels of ptxas's verbose report."""
    found = []
    for part in _ENTRY.split(report)[1:]:
        if part.isidentifier():
            name = part
            continue
        stack, used, shared = _STACK.search(part), _USED.search(part), _SHARED.search(part)
        if stack is None or used is None:
            raise PlanishError(f"ptxas reports no resources of {name}")
        frame, stores, loads = map(int, stack.groups())
        found.append(Resources(name, int(used[1]), int(shared[1]) if shared else 0, frame, stores, loads))
    return found


class Compiling:
    """While entered, TVM's CUDA C++ becomes machine code for one architecture; `resources` gathers what ptxas says.

    TVM itself would put the text into the library, to be compiled where it is loaded. What it finds in its place is the
    machine code, spelt so that the runtime knows it (`codegen/runtime/cuda.py`).
    """

    def __init__(self, arch: str) -> None:
        self.arch, self.resources = arch, list[Resources]()
        self._failure: PlanishError | None = None

    def __enter__(self) -> Compiling:
        self._failure = None
        tvm_ffi.register_global_func("tvm_callback_cuda_postproc", self._compile, override=True)
        return self

    def __exit__(self, *error: object) -> None:
        tvm_ffi.register_global_func("tvm_callback_cuda_postproc", _as_it_is, override=True)
        # On its way through TVM an error loses its class.
        if self._failure is not None:
            raise self._failure from None

    def _compile(self, source: str, target: object) -> str:
        try:
            code, resources = compile_cuda(source, self.arch)
        except PlanishError as failure:
            self._failure = failure
            raise
        self.resources += resources
        return spell(code)


def _as_it_is(source: str, target: object) -> str:
    return source
