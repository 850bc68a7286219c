"""An NVIDIA GPU of this machine as a device: weights, states and intermediate tensors lie in its memory."""

from __future__ import annotations

import base64
import ctypes
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from planish.codegen.runtime.cuda_graph import CUDART, Recording, new_stream
from planish.codegen.runtime.device import Device
from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.ffi import tvm_ffi
from planish.codegen.runtime.library import CPU, NAIVE, POOLED, CompiledLibrary, find_runtime, load_runtime
from planish.codegen.runtime.sizes import TensorSpec
from planish.codegen.runtime.tensors import aligned_zeros, from_compiled, map_weights

CUDA = 2
"""DLPack's number of CUDA devices."""
KEPT = 8
"""Calls that stay ready to be replayed; each keeps the memory of its intermediate tensors."""
_EXISTS, _COMPUTE_VERSION = 0, 4
_MARK = "cubin;base64,"


def spell(code: bytes) -> str:
    """Machine code as the text that stands for it in a library."""
    return _MARK + base64.b64encode(code).decode("ascii")


def machine_code(text: str) -> bytes:
    """What `spell` has spelt; TVM asks for it with the text that it finds in a library."""
    if not text.startswith(_MARK):
        raise RuntimeError("the library holds CUDA C++ and no machine code: build it with planish")
    return base64.b64decode(text[len(_MARK) :])


def _load_cudart() -> None:
    """CUDA's own runtime, which TVM's part needs: the machine's, or that of the package nvidia-cuda-runtime."""
    packaged = Path(sysconfig.get_paths()["purelib"]).glob(f"nvidia/cu*/lib/{CUDART}")
    for place in (CUDART, *map(str, packaged)):
        with suppress(OSError):
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
            return


@cache
def load_cuda_runtime() -> None:
    """TVM's part for CUDA, loaded once; InputError where there is no driver."""
    load_runtime()
    _load_cudart()
    library = find_runtime().with_name("libtvm_runtime_cuda.so")
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise input_error(
            f"this machine cannot run CUDA artifacts: {error}; libcuda comes with NVIDIA's driver, "
            f"libcudart with `pip install planish[cuda]`"
        ) from error
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", machine_code, override=True)


class _Call:
    """One function with tensors on the GPU; it keeps them, so that nothing else takes their place."""

    def __init__(self, function: Any, arguments: list[Any], weights: Any) -> None:
        self.function, self.arguments, self.weights = function, arguments, weights
        self._recording: Recording | None = None

    def run(self) -> list[Any]:
        return list(self.function(*self.arguments, self.weights))

    def replay(self, place: Any, stream: Any) -> list[Any]:
        if self._recording is None:
            self._recording = Recording(place, stream, self.run)
        return self._recording.replay()


class CudaDevice(Device):
    """One GPU. Arrays are copied there for each call, results when they are fetched.

    Args:
        number: which of the machine's GPUs.
    """

    kind: ClassVar[str] = "cuda"

    def __init__(self, number: int = 0) -> None:
        load_cuda_runtime()
        self.number = number
        self._place = tvm_ffi.device("cuda", number)
        names = ("AllocWithScope", "CopyFromBytes", "CopyToBytes")
        self._allocate, self._send, self._fetch = (tvm_ffi.get_global_func(f"runtime.TVMTensor{n}") for n in names)
        attribute = tvm_ffi.get_global_func("runtime.GetDeviceAttr")
        if not attribute(CUDA, number, _EXISTS):
            raise input_error(f"this machine has no CUDA device {number}")
        self._version = attribute(CUDA, number, _COMPUTE_VERSION)
        # By function, shapes of the arrays and tensors of the states; the least recently used one first.
        self._known: dict[Any, _Call] = {}
        self._stream = new_stream(number)

    def features(self) -> frozenset[str] | None:
        return frozenset({"sm_" + str(self._version).replace(".", "")})

    def load(self, library: Path) -> Callable[[str], Any]:
        # Memory of the GPU is expensive to ask for, so what a call needed is kept for the next one.
        return CompiledLibrary(library, (CUDA, self.number, POOLED, CPU, 0, NAIVE)).function

    def _sent(self, array: Any) -> Any:
        """An array of this process, on the GPU."""
        array = np.asarray(array, order="C")
        there = self._allocate(tvm_ffi.Shape(array.shape), tvm_ffi.dtype(str(array.dtype)), self._place, None)
        if array.nbytes:
            self._fill(there, array)
        return there

    def _fill(self, tensor: Any, array: Any) -> None:
        array = np.asarray(array, order="C")
        self._send(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def weights(self, path: Path) -> Mapping[str, Any]:
        return {key: self._sent(np.from_dlpack(tensor)) for key, tensor in map_weights(path).items()}

    def bundle(self, tensors: Sequence[Any]) -> Any:
        return tvm_ffi.convert(list(tensors))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._sent(aligned_zeros(shape, dtype))

    def grown(self, state: Any, shape: tuple[int, ...]) -> Any:
        old = self._fetched(state)
        larger = aligned_zeros(shape, old.dtype)
        larger[tuple(slice(0, n) for n in old.shape)] = old
        return self._sent(larger)

    def _fetched(self, tensor: Any) -> Any:
        here = aligned_zeros(tuple(tensor.shape), np.dtype(str(tensor.dtype)))
        if here.nbytes:
            # Waits for the GPU.
            self._fetch(tensor, ctypes.c_void_p(here.ctypes.data), here.nbytes)
        return here

    def call(
        self, function: Any, arrays: Sequence[Any], states: Sequence[Any], weights: Any, results: int
    ) -> list[Any]:
        """The first call of its kind runs as it is, the second is recorded, and every later one replays the recording."""
        kind = (id(function), *((a.shape, a.dtype.str) for a in arrays), *map(id, states))
        known = self._known.pop(kind, None)
        if known is None:
            known = _Call(function, [*map(self._sent, arrays), *states], weights)
            made = known.run()
        else:
            for tensor, array in zip(known.arguments, arrays):
                if array.nbytes:
                    self._fill(tensor, array)
            made = known.replay(self._place, self._stream)
        self._known[kind] = known
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        return made

    def fetch(self, result: Any, type: TensorSpec, torch_wanted: bool) -> Any:
        return from_compiled(self._fetched(result), type, torch_wanted)

    def set_threads(self, count: int | None) -> None:
        if count is not None:
            raise input_error("threads are counted on processors; a GPU uses what it has")
