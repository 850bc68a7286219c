"""Where compiled code runs and where its tensors lie: in this process, or on a machine that is reached from it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.ffi import tvm_ffi
from planish.codegen.runtime.governor import Governor
from planish.codegen.runtime.library import CompiledLibrary, use_threads
from planish.codegen.runtime.machine import cpu_features, usable_cores
from planish.codegen.runtime.sizes import TensorSpec
from planish.codegen.runtime.tensors import aligned_zeros, from_compiled, map_weights


class Device(ABC):
    """One place to run an artifact. Arrays of this process go in and come out; states stay where the code is.

    Every method raises InputError, in one sentence, when the device cannot do what is asked or does not answer.

    Attributes:
        kind: the kind of device that artifacts must be compiled for.
    """

    kind: ClassVar[str] = "cpu"

    @abstractmethod
    def features(self) -> frozenset[str] | None:
        """Features of its processor in LLVM's spelling; None where they are not known."""

    @abstractmethod
    def load(self, library: Path) -> Callable[[str], Any]:
        """Load a library of compiled code; returns what finds its functions by name."""

    @abstractmethod
    def weights(self, path: Path) -> Mapping[str, Any]:
        """The tensors of a weights file, on the device."""

    @abstractmethod
    def bundle(self, tensors: Sequence[Any]) -> Any:
        """Tensors of `weights` as compiled functions take them: as one argument."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A state of zeros."""

    @abstractmethod
    def grown(self, state: Any, shape: tuple[int, ...]) -> Any:
        """A state with the old one in its corner, zeros elsewhere."""

    @abstractmethod
    def call(
        self, function: Any, arrays: Sequence[Any], states: Sequence[Any], weights: Any, results: int
    ) -> list[Any]:
        """Call a function with arrays, states and its bundle of weights; its results stay on the device."""

    @abstractmethod
    def fetch(self, result: Any, type: TensorSpec, torch_wanted: bool) -> Any:
        """A result as a numpy array (bfloat16 as float32) or, when wanted, as a torch tensor."""

    @abstractmethod
    def set_threads(self, count: int | None) -> None:
        """How many threads compiled code uses at most; None for as many as there are cores."""


class LocalDevice(Device):
    """This process: nothing is copied, and each call gets as many threads as pay off beside what else runs here."""

    def __init__(self) -> None:
        self._governor = Governor(usable_cores())

    def features(self) -> frozenset[str] | None:
        return cpu_features()

    def load(self, library: Path) -> Callable[[str], Any]:
        return CompiledLibrary(library).function

    def weights(self, path: Path) -> Mapping[str, Any]:
        return map_weights(path)

    def bundle(self, tensors: Sequence[Any]) -> Any:
        return tvm_ffi.convert(list(tensors))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return tvm_ffi.from_dlpack(aligned_zeros(shape, dtype))

    def grown(self, state: Any, shape: tuple[int, ...]) -> Any:
        old = np.from_dlpack(state)
        larger = aligned_zeros(shape, old.dtype)
        larger[tuple(slice(0, n) for n in old.shape)] = old
        return tvm_ffi.from_dlpack(larger)

    def call(
        self, function: Any, arrays: Sequence[Any], states: Sequence[Any], weights: Any, results: int
    ) -> list[Any]:
        # A token's weights drive all that Python touches out of the caches: the less is touched, states for one, the better.
        kind = (id(function), *(a.shape for a in arrays))
        given = [tvm_ffi.from_dlpack(a) for a in arrays]
        threads = self._governor.choose(kind)
        use_threads(threads)
        start = time.perf_counter()
        made = function(*given, *states, weights)
        self._governor.record(kind, threads, time.perf_counter() - start)
        return [made[number] for number in range(results)]

    def fetch(self, result: Any, type: TensorSpec, torch_wanted: bool) -> Any:
        return from_compiled(np.from_dlpack(result), type, torch_wanted)

    def set_threads(self, count: int | None) -> None:
        if count is not None and count < 1:
            raise input_error(f"compiled code needs at least one thread, not {count}")
        self._governor = Governor(usable_cores() if count is None else count)
