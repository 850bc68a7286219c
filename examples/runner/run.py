"""Run an artifact with numpy, tvm_ffi and TVM's runtime library alone: no planish, no compiler, no torch.

    run.py ARTIFACT ids.npy mask.npy --out FOLDER     # call `forward`; each result becomes FOLDER/NAME.npy
    run.py ARTIFACT --ids 5,17,3 --new-tokens 16      # continue token ids greedily

An artifact's manifest.json states for each function its inputs, its states and its weights, in the order of the call:

    results, written states = function(*inputs, *states, (*weights,))

Every tensor begins at a multiple of 64 bytes. Types read like `f32[B, 2, (C + 15) // 16]`; bfloat16 crosses as the uint16 of
its bits. States are memory of the caller: zeros at first, written where they lie, with room for C tokens in each of B rows.
Weights are tensors of weights.safetensors, which is mapped and never copied.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

CPU, FIRST, NAIVE = 1, 0, 1
"""DLPack's number of the processor, which of them, and TVM's allocator that keeps no memory."""
ALIGNMENT = 64
DTYPES: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i64": np.int64, "i32": np.int32,
    "i16": np.int16, "i8": np.int8, "u16": np.uint16, "u8": np.uint8, "bool": np.bool_,
}  # fmt: skip


def zeros(shape: Sequence[int], dtype: Any) -> Any:
    """Zeros at an aligned address."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned(array: Any) -> Any:
    """The same values at an aligned address."""
    copy = zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def shape_of(type: str, **sizes: int) -> list[int]:
    """The shape that a type states for given values of its symbols."""

    def size(dim: ast.expr) -> int:
        if isinstance(dim, ast.BinOp):
            left, right = size(dim.left), size(dim.right)
            results = {ast.Add: left + right, ast.Mult: left * right, ast.FloorDiv: left // max(right, 1)}
            return results[dim.op.__class__]
        if isinstance(dim, ast.Name):
            return sizes[dim.id]
        return int(ast.literal_eval(dim))

    dims = ast.parse(type[type.index("[") :], mode="eval").body
    assert isinstance(dims, ast.List)
    return [size(dim) for dim in dims.elts]


def map_weights(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, in the mapped file itself: a length, a header in JSON, then the data."""
    # Copied on write, because DLPack has no way to say "read only"; nothing writes.
    memory = np.memmap(path, np.uint8, mode="c")
    length = int(memory[:8].view(np.uint64)[0])
    header, data = json.loads(memory[8 : 8 + length].tobytes()), memory[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = data[begin:end].view(DTYPES[entry["dtype"].lower()]).reshape(entry["shape"])
            tensors[name] = tvm_ffi.from_dlpack(array)
    return tensors


class Artifact:
    """An artifact's functions and their signatures."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._weights = map_weights(folder / "weights.safetensors")
        self._machine = tvm_ffi.load_module(str(folder / "kernels.so"))["vm_load_executable"]()
        self._machine["vm_initialization"](CPU, FIRST, NAIVE)

    def states(self, capacity: int, rows: int = 1) -> dict[str, Any]:
        """Zeros for every state, with room for `capacity` tokens, a power of two, in each row."""
        types = {name: state["memory"] for name, state in self.manifest["states"].items()}
        return {n: zeros(shape_of(t, B=rows, C=capacity), DTYPES[t.partition("[")[0]]) for n, t in types.items()}

    def function(self, name: str) -> Callable[..., dict[str, Any]]:
        """A function of arrays, in order, and of states by name; its results by name."""
        signature, compiled = self.manifest["functions"][name], self._machine[name]
        weights = tvm_ffi.convert([self._weights[key] for key in signature["weights"]])

        def call(*inputs: Any, states: dict[str, Any] | None = None) -> dict[str, Any]:
            wanted = [DTYPES[i["type"].partition("[")[0]] for i in signature["inputs"]]
            if [array.dtype for array in inputs] != wanted:
                raise SystemExit(f"{name} takes {signature['inputs']}, not {[str(a.dtype) for a in inputs]}")
            arrays = [aligned(a) for a in inputs] + [(states or {})[n] for n in signature["states"]]
            made = compiled(*map(tvm_ffi.from_dlpack, arrays), weights)
            # The written states follow, which the caller has already.
            return {o["name"]: np.from_dlpack(r) for o, r in zip(signature["outputs"], made)}

        return call


def generate(artifact: Artifact, ids: Sequence[int], new_tokens: int) -> list[int]:
    """The likeliest next tokens: the prompt goes through `prefill`, each new token but the last through `decode`."""
    prefill, decode = artifact.function("prefill"), artifact.function("decode")
    states = artifact.states(max(64, 1 << (len(ids) + new_tokens - 1).bit_length()))
    ends, new = set(artifact.manifest["metadata"].get("eos_token_ids") or ()), list[int]()
    (logits,) = prefill(np.array([ids]), np.array([len(ids)]), states=states).values()
    while (token := int(logits[0, -1].argmax())) not in ends:
        new.append(token)
        if len(new) == new_tokens:
            break
        # A token is read at the place after all those before it.
        (logits,) = decode(np.array([[token]]), np.array([len(ids) + len(new) - 1]), states=states).values()
    return new


def load_runtime() -> Any:
    """TVM's runtime library: in the folder TVM_LIBRARY_PATH, or beside tvm_ffi in the package tvm, which is not imported."""
    folder = os.environ.get("TVM_LIBRARY_PATH") or Path(str(tvm_ffi.__file__)).parents[1] / "tvm" / "lib"
    (path, *_) = sorted(Path(folder).glob("libtvm_runtime.*"))
    # Global, because compiled code calls into it without naming it.
    return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def main() -> None:
    parser = argparse.ArgumentParser(description="run an artifact with TVM's runtime alone")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("inputs", type=Path, nargs="*", help="an .npy file for each input of `forward`, in order")
    parser.add_argument("--out", type=Path, default=Path(), help="where results go")
    parser.add_argument("--ids", help="token ids to continue, with commas between them")
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    load_runtime()
    artifact = Artifact(options.artifact)
    if options.ids:
        print(*generate(artifact, [int(i) for i in options.ids.split(",")], options.new_tokens), sep=",")
        return
    for name, result in artifact.function("forward")(*map(np.load, options.inputs)).items():
        np.save(options.out / f"{name}.npy", result)


if __name__ == "__main__":
    main()
