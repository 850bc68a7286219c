"""Calls recorded as CUDA graphs: what a function launches for one set of tensors, launched again as one.

A decoder launches hundreds of short kernels for a token; launching them one by one takes longer than running them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.ffi import tvm_ffi

CUDART = "libcudart.so.13"
"""CUDA's runtime, of the version that TVM's part for CUDA names."""
_RELAXED = 2
"""Capture mode in which memory may be asked for meanwhile."""


@cache
def _driver() -> Any:
    # Loaded already, as part of TVM's runtime for CUDA.
    return ctypes.CDLL(CUDART)


def _checked(name: str, *arguments: Any) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        raise input_error(f"the GPU cannot replay a call: {name} failed with CUDA's error {code}")


class Recording:
    """One call on its way to being replayed.

    Args:
        place: the GPU, as tvm_ffi names it.
        stream: made by `new_stream`; it waits for the default stream, and that one for it.
        call: what launches kernels; called once, while recording, and it runs nothing then.
    """

    def __init__(self, place: Any, stream: ctypes.c_void_p, call: Callable[[], list[Any]]) -> None:
        self._stream, self._runnable = stream, ctypes.c_void_p()
        graph = ctypes.c_void_p()
        with tvm_ffi.use_raw_stream(place, stream.value or 0):
            _checked("cudaStreamBeginCapture", stream, _RELAXED)
            try:
                self.results = call()
            finally:
                _checked("cudaStreamEndCapture", stream, ctypes.byref(graph))
        _checked("cudaGraphInstantiate", ctypes.byref(self._runnable), graph, ctypes.c_ulonglong(0))
        _checked("cudaGraphDestroy", graph)

    def replay(self) -> list[Any]:
        """Run it; the results lie where they lay before, and hold until the next replay."""
        _checked("cudaGraphLaunch", self._runnable, self._stream)
        return self.results

    def __del__(self) -> None:
        if self._runnable:
            _driver().cudaGraphExecDestroy(self._runnable)


def new_stream(number: int) -> ctypes.c_void_p:
    """A stream of a GPU that keeps the order of its work and the default stream's."""
    stream = ctypes.c_void_p()
    _checked("cudaSetDevice", number)
    _checked("cudaStreamCreate", ctypes.byref(stream))
    return stream
