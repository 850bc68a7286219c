"""TVM's runtime library and the libraries of compiled code.

`import tvm` would load the compiler, 250 MB that a run does not need. So the runtime library is opened by its path and
spoken to through `tvm_ffi`, the small package that both share.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.ffi import tvm_ffi
from planish.codegen.runtime.machine import usable_cores

CPU = 1
"""DLPack's number of the CPU."""
NAIVE, POOLED = 1, 2
"""TVM's allocators: every tensor from the system, or memory kept for the next one."""
_ONE_CORE_PER_THREAD = 1


def find_runtime() -> Path:
    """The runtime library: in TVM_LIBRARY_PATH, or in the installed tvm package, which is not imported.

    Raises:
        InputError: when there is none.
    """
    places = [Path(p) for p in [os.environ.get("TVM_LIBRARY_PATH", "")] if p]
    spec = importlib.util.find_spec("tvm")
    places += [Path(p) / "lib" for p in (spec.submodule_search_locations or [] if spec is not None else [])]
    for place in places:
        for name in ("libtvm_runtime.so", "libtvm_runtime.dylib", "tvm_runtime.dll"):
            if (place / name).is_file():
                return place / name
    raise input_error(
        "TVM's runtime library is not installed: install apache-tvm, or name its folder in TVM_LIBRARY_PATH"
    )


@cache
def load_runtime() -> Any:
    """TVM's runtime library, loaded once."""
    # Left to itself, TVM takes half of the logical processors for the cores and never starts more threads than that.
    os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores()))
    # Global, because compiled code calls into it without naming it.
    return ctypes.CDLL(str(find_runtime()), ctypes.RTLD_GLOBAL)


class CompiledLibrary:
    """The functions of one library of compiled code.

    Intermediate memory is returned to the system allocator after each use: sizes change with every sequence length, and
    a pool would keep them all.
    """

    def __init__(self, path: Path, devices: Sequence[int] = (CPU, 0, NAIVE)) -> None:
        """`devices` are, for each device, its kind, its number and how it allocates; the processor comes last."""
        load_runtime()
        try:
            self._module = tvm_ffi.load_module(str(path))
            self._machine = self._module["vm_load_executable"]()
            self._machine["vm_initialization"](*devices)
        except Exception as error:
            raise input_error(f"{path} cannot be loaded: {str(error).strip().splitlines()[-1]}") from error

    def function(self, name: str) -> Any:
        """A compiled function; it takes and returns tensors."""
        return self._machine[name]


_LOCAL = threading.local()


def use_threads(count: int) -> None:
    """How many threads compiled code that this thread calls uses from now on; at least 1."""
    if getattr(_LOCAL, "threads", None) == count:
        return
    load_runtime()
    # TVM binds the calling thread to a core, and threads that it starts later (torch's own) would inherit that one core.
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    tvm_ffi.get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, count)
    if allowed is not None:
        os.sched_setaffinity(0, allowed)
    _LOCAL.threads = count
