"""ggml through the libraries that the package of llama.cpp's bindings brings: quantised tensors, and products with them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

REPACKED = b"CPU_REPACK"
_FLOAT32 = 0
_FOLDER = Path(llama_cpp.__file__).parent / "lib"
_POINTER = ctypes.c_void_p


class _Init(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    found = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found


_BASE, _CPU = (ctypes.CDLL(str(_FOLDER / f"lib{name}.so")) for name in ("ggml-base", "ggml-cpu"))
_size, _int64 = ctypes.c_size_t, ctypes.c_int64
_init = _function(_BASE, "ggml_init", _POINTER, _Init)
_overhead = _function(_BASE, "ggml_tensor_overhead", _size)
_graph_overhead = _function(_BASE, "ggml_graph_overhead", _size)
_tensor = _function(_BASE, "ggml_new_tensor_2d", _POINTER, _POINTER, ctypes.c_int, _int64, _int64)
_product = _function(_BASE, "ggml_mul_mat", _POINTER, _POINTER, _POINTER, _POINTER)
_graph = _function(_BASE, "ggml_new_graph", _POINTER, _POINTER)
_expand = _function(_BASE, "ggml_build_forward_expand", None, _POINTER, _POINTER)
_nbytes = _function(_BASE, "ggml_nbytes", _size, _POINTER)
_allocate = _function(_BASE, "ggml_backend_alloc_ctx_tensors", _POINTER, _POINTER, _POINTER)
_allocate_in = _function(_BASE, "ggml_backend_alloc_ctx_tensors_from_buft", _POINTER, _POINTER, _POINTER)
_write = _function(_BASE, "ggml_backend_tensor_set", None, _POINTER, _POINTER, _size, _size)
_read = _function(_BASE, "ggml_backend_tensor_get", None, _POINTER, _POINTER, _size, _size)
_compute = _function(_BASE, "ggml_backend_graph_compute", ctypes.c_int, _POINTER, _POINTER)
_address = _function(_BASE, "ggml_backend_reg_get_proc_address", _POINTER, _POINTER, ctypes.c_char_p)
_device = _function(_BASE, "ggml_backend_reg_dev_get", _POINTER, _POINTER, _size)
_buffer_name = _function(_BASE, "ggml_backend_buft_name", ctypes.c_char_p, _POINTER)
_quantize = _function(
    _BASE, "ggml_quantize_chunk", _size, ctypes.c_int, _POINTER, _POINTER, _int64, _int64, _int64, _POINTER
)
_backend = _function(_CPU, "ggml_backend_cpu_init", _POINTER)
_threads = _function(_CPU, "ggml_backend_cpu_set_n_threads", None, _POINTER, ctypes.c_int)
_registry = _function(_CPU, "ggml_backend_cpu_reg", _POINTER)


def _ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Its log, and that of llama.cpp, is not ours."""


# No decorator, which would take the function's types away: those of llama.cpp's package are not read.
_SILENT = llama_cpp.llama_log_callback(_ignore)
llama_cpp.llama_log_set(_SILENT, _POINTER(0))


def quantize(values: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """float32 [rows, columns] as ggml's own quantisation packs it: uint8 [rows, bytes of a row]."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = values.shape
    given, packed = np.ascontiguousarray(values, np.float32), np.empty((rows, columns // block * size), np.uint8)
    written = _quantize(int(kind), given.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
    if written != packed.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name} for {rows} x {columns}, not {packed.nbytes}")
    return packed


def pack_q4_0(codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Q4_0 blocks: a float16 scale and 16 bytes, the codes of elements n and n + 16 in byte n's halves.

    Args:
        codes: uint8 [out, in], 8 standing for zero.
        scales: float16 [out, in / group], the group a multiple of 32.
    """
    outs, ins = codes.shape
    of_blocks = np.repeat(scales, ins // 32 // scales.shape[1], axis=1)
    blocks = codes.reshape(outs, ins // 32, 2, 16)
    packed = blocks[:, :, 0] | (blocks[:, :, 1] << 4)
    return np.concatenate([of_blocks[..., None].view(np.uint8), packed], axis=-1).reshape(outs, -1)


class Product:
    """x [rows, in] times the transpose of Q4_0 weights, repacked for this processor as llama.cpp does when it loads them."""

    def __init__(self, packed: np.ndarray[Any, Any], x: np.ndarray[Any, Any], threads: int) -> None:
        (rows, ins), outs = x.shape, packed.shape[0]
        self._backend = _backend()
        _threads(self._backend, threads)
        of_weights = _init(_Init(2 * _overhead(), None, True))
        weight = _tensor(of_weights, int(gguf.GGMLQuantizationType.Q4_0), ins, outs)
        if not _allocate_in(of_weights, _repacked()):
            raise RuntimeError("ggml has no memory for the weights")
        # This is where it repacks.
        _write(weight, packed.ctypes.data, 0, packed.nbytes)
        context = _init(_Init(4 * _overhead() + _graph_overhead(), None, True))
        given = _tensor(context, _FLOAT32, ins, rows)
        self._result, self._graph = _product(context, weight, given), _graph(context)
        _expand(self._graph, self._result)
        if not _allocate(context, self._backend):
            raise RuntimeError("ggml has no memory for a product")
        _write(given, x.ctypes.data, 0, x.nbytes)
        self._shape = (rows, outs)

    def run(self) -> None:
        if _compute(self._backend, self._graph) != 0:
            raise RuntimeError("ggml's product failed")

    def result(self) -> np.ndarray[Any, Any]:
        """float32 [rows, out] of the last run."""
        y = np.empty(self._shape, np.float32)
        _read(self._result, y.ctypes.data, 0, y.nbytes)
        return y


def _repacked() -> Any:
    """The kind of buffer whose tensors are repacked."""
    registry = _registry()
    list_kinds: Callable[[Any], Any] = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(
        _address(registry, b"ggml_backend_dev_get_extra_bufts")
    )
    found = list_kinds(_device(registry, 0))
    number = 0
    while found[number]:
        if _buffer_name(found[number]) == REPACKED:
            return found[number]
        number += 1
    raise RuntimeError("this build of ggml repacks no weights")
