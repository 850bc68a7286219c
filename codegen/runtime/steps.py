"""How long each step of a compiled function takes, timed one by one in this process.

The report lists the calls of kernels that each step became. They are made here in the function's order on tensors of the
report's sizes: stored tensors are the artifact's, states begin as zeros, and what a step computes is what the next one
reads. Timing every step in turn, round after round, leaves in the processor's caches what a run would leave there.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.codegen.runtime.caches import CAPACITY
from planish.codegen.runtime.device import LocalDevice
from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.executable import Executable
from planish.codegen.runtime.ffi import tvm_ffi
from planish.codegen.runtime.library import load_runtime, use_threads
from planish.codegen.runtime.machine import usable_cores
from planish.codegen.runtime.manifest import KERNELS, WEIGHTS
from planish.codegen.runtime.sizes import parse_type
from planish.codegen.runtime.tensors import aligned_copy, aligned_zeros, map_weights


@dataclass(frozen=True)
class StepTime:
    """One step as it ran.

    Attributes:
        operations: what it computes; none for a copy of a result or of a state's content.
        kernel: the family and variant that was chosen.
        functions: the compiled functions that it calls.
        bytes, work: what it must move and compute, at the report's sizes.
        floor_seconds: the report's floor.
        seconds: the median of all rounds.
    """

    operations: tuple[str, ...]
    kernel: str
    functions: tuple[str, ...]
    bytes: int
    work: int
    floor_seconds: float
    seconds: float

    @property
    def share(self) -> float:
        """The floor as a share of the measured time."""
        return self.floor_seconds / self.seconds


def time_steps(
    executable: Executable, function: str, *, repeats: int = 5, threads: int | None = None
) -> list[StepTime]:
    """Every step of a function in order, but for views, which are no code.

    `threads` is how many threads kernels use; as many as there are cores when None.

    Raises:
        InputError: when the artifact does not run in this process, has no such function or was written without calls in
            its report, or when a kernel refuses the report's sizes.
    """
    if not isinstance(executable.device, LocalDevice):
        raise input_error("steps are timed on the processor of this process alone, and this artifact runs elsewhere")
    if repeats < 1 or (threads is not None and threads < 1):
        raise input_error("timing steps needs at least 1 repeat and 1 thread")
    reports = executable.manifest["report"]["functions"]
    if function not in reports:
        raise input_error(f"this artifact has no function {function!r}; it has {', '.join(reports)}")
    report = reports[function]
    if "copies" not in report:
        raise input_error("this artifact's report does not say what its steps call; compile the model again")
    rows = [row for row in (*report["steps"], *report["copies"]) if row["calls"]]
    sizes = report["sizes"]
    whole = _whole_numbers(executable, function, sizes)
    bound = _Binding(executable, sizes, whole, [c for row in rows for c in row["calls"]])
    steps = [[bound.call(c) for c in row["calls"]] for row in rows]
    use_threads(usable_cores() if threads is None else threads)
    try:
        seconds = _medians(steps, repeats)
    except Exception as error:
        shown = ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())
        why = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise input_error(f"{function} does not run at the report's sizes ({shown}): {why}") from error
    return [_timed(row, taken) for row, taken in zip(rows, seconds)]


def _medians(steps: list[list[Callable[[], Any]]], repeats: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, times in zip(steps, taken):
            start = time.perf_counter()
            for call in step:
                call()
            times.append(time.perf_counter() - start)
    # The first round also touches all memory for the first time.
    return [statistics.median(times[1:]) for times in taken]


def _timed(row: Mapping[str, Any], seconds: float) -> StepTime:
    names = tuple(call["function"] for call in row["calls"])
    facts = (row["bytes_here"], row["work_here"], row["floor_seconds"])
    return StepTime(tuple(row["operations"]), row["kernel"], names, *facts, seconds)


class _Binding:
    """Memory for everything that a function's calls read and write; what is read no more is used again."""

    def __init__(
        self,
        executable: Executable,
        sizes: Mapping[str, int],
        whole: Mapping[str, int],
        calls: Iterable[Mapping[str, Any]],
    ) -> None:
        load_runtime()
        self._sizes = sizes
        self._library = tvm_ffi.load_module(str(executable.folder / KERNELS))
        self._weights = map_weights(executable.folder / WEIGHTS)
        self._whole = whole
        self._memory: dict[str, Any] = {}
        self._free: dict[int, list[Any]] = {}
        self._reads: dict[str, int] = {}
        for text in (t for c in calls for t in c["inputs"]):
            name = text.rpartition(": ")[0]
            self._reads[name] = self._reads.get(name, 0) + 1

    def call(self, call: Mapping[str, Any]) -> Callable[[], Any]:
        """One call, ready to be made; calls must be bound in their order."""
        function = self._library.get_function(call["function"], query_imports=True)
        if function is None:
            raise input_error(f"the compiled library lacks {call['function']}; compile the model again")
        tensors = [self._tensor(text) for text in call["inputs"]]
        numbers = [self._sizes[symbol] for symbol in call["symbols"]]
        arguments = (*tensors, *numbers, *(self._tensor(text) for text in call["results"]))
        for text in call["inputs"]:
            self._release(text.rpartition(": ")[0])
        return lambda: function(*arguments)

    def _tensor(self, text: str) -> Any:
        name, _, type_text = text.rpartition(": ")
        type = parse_type(type_text)
        shape = type.shape(self._sizes)
        kind, _, key = name.partition(" ")
        if kind == "weight":
            tensor = self._weights[key]
            if tuple(tensor.shape) == shape:
                return tensor
            return tvm_ffi.from_dlpack(aligned_copy(np.from_dlpack(tensor).reshape(shape)))
        if name not in self._memory:
            size = math.prod(shape) * np.dtype(type.stored).itemsize
            # Inputs and states keep what they hold through all rounds.
            kept = self._free.get(size) if kind == "value" else None
            self._memory[name] = kept.pop() if kept else aligned_zeros((size,), np.uint8)
            if kind == "input":
                self._memory[name].view(type.stored)[:] = type.dtype == "bool" or self._whole.get(key, 0)
        return tvm_ffi.from_dlpack(self._memory[name].view(type.stored).reshape(shape))

    def _release(self, name: str) -> None:
        """Count one read of a value; after its last one, its memory is free."""
        self._reads[name] -= 1
        if name.startswith("value ") and not self._reads[name]:
            memory = self._memory.pop(name)
            self._free.setdefault(memory.nbytes, []).append(memory)


def _whole_numbers(executable: Executable, function: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Values of the inputs that say where tokens stand: caches end up as full as the report and the context let them be."""
    capacity = sizes.get(CAPACITY, 0)
    context = min(capacity, executable.manifest["metadata"].get("context_length") or capacity)
    shapes = [type.shape(sizes) for type in executable.programs[function].inputs.values()]
    tokens = shapes[0][1] if shapes and len(shapes[0]) > 1 else 1
    return {"start": max(context - tokens, 0), "length": tokens, "source_length": capacity}


__all__ = ["StepTime", "time_steps"]
