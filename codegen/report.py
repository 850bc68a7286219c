"""The build report: what computes each operation of each function, what it moves and works, and the roofline's floor.

Bytes and operations are formulas over the symbols; the figures beside them hold for the sizes that the report states.
The floor of an operation is the longer of its bytes at the machine's memory bandwidth and its arithmetic at the machine's
peak: no kernel can be faster on that machine. The calls that each step became are listed, so that a run can time them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from planish.codegen.aten import tables
from planish.codegen.dims import product
from planish.codegen.emitter import Argument, Call
from planish.codegen.lower import Lowered, LoweredFunction
from planish.codegen.plan import FusedStep, KernelStep, Step
from planish.codegen.pointwise.dtypes import STORAGE
from planish.codegen.runtime.caches import CAPACITY, FIRST_CAPACITY
from planish.codegen.target import Target
from planish.ir import Dim
from planish.ir.dims import format_dim
from planish.ir.types import DTYPE_NAMES, resolve

SIZES = {"B": 1, "C": 1024}
"""Values of the symbols in the report's figures, where a function does not fix them and the model can have them."""
TOKENS = 512
"""Value of any other symbol: a sequence's length."""


def build_report(lowered: Lowered, target: Target) -> dict[str, Any]:
    """Rows for every step of every function, and totals."""
    bandwidth = target.capabilities().bytes_per_second
    speeds = target.operations_per_second()
    usual = _usual_sizes(lowered.metadata)
    functions = {name: _function(f, usual, bandwidth, speeds) for name, f in lowered.functions.items()}
    return {"bytes_per_second": bandwidth, "operations_per_second": speeds, "functions": functions}


def _usual_sizes(metadata: Mapping[str, Any]) -> Callable[[str], int]:
    """The value of each symbol, within what the model was traced for and its context holds."""
    ranges: dict[str, tuple[int, int | None]] = {s: (low, high) for s, low, high in metadata.get("dim_ranges", ())}
    context: int | None = metadata.get("context_length")

    def size(symbol: str) -> int:
        usual = SIZES.get(symbol, TOKENS)
        if context is not None and symbol == CAPACITY:
            # Capacities are powers of two.
            return min(usual, max(FIRST_CAPACITY, 1 << max(context - 1, 0).bit_length()))
        low, high = ranges.get(symbol, (1, None))
        if context is not None and symbol not in SIZES:
            usual = min(usual, context)
        return max(low, usual if high is None else min(usual, high))

    return size


def _function(
    lowered: LoweredFunction, usual: Callable[[str], int], bandwidth: float | None, speeds: Mapping[str, float]
) -> dict[str, Any]:
    function = lowered.plan.function
    symbols = sorted(
        {s for v in function.inputs for s in v.type.symbols}
        | {s for n in function.nodes for v in n.outputs for s in v.type.symbols}
    )
    sizes = {s: usual(s) for s in symbols}
    rows = [
        {**_row(step, sizes, bandwidth, speeds), "calls": [_call(c) for c in calls]}
        for step, calls in zip(lowered.plan.steps, lowered.calls, strict=True)
    ]
    total = sum(row["floor_seconds"] or 0.0 for row in rows)
    for row in rows:
        row["share"] = round(row["floor_seconds"] / total, 4) if total and row["floor_seconds"] is not None else 0.0
    copies = [_copy(call, sizes, bandwidth) for call in lowered.copies]
    return {"sizes": sizes, "floor_seconds": total, "steps": rows, "copies": copies}


def _row(step: Step, sizes: Mapping[str, int], bandwidth: float | None, speeds: Mapping[str, float]) -> dict[str, Any]:
    if isinstance(step, KernelStep):
        kernel = step.kernel
        nodes, name, schedule = list(step.nodes), kernel.name, kernel.schedule
        traffic, work, arithmetic = kernel.traffic, kernel.work, kernel.arithmetic
    elif isinstance(step, FusedStep):
        nodes = list(step.fused.nodes)
        name = "fold" if step.fold is not None else "fused"
        schedule = _SCHEDULES[name]
        traffic, work = fused_traffic(step), fused_work(step)
        arithmetic = "float32"
    else:
        nodes, name, schedule, traffic, work, arithmetic = [step.node], "view", "no code", 0, 0, "float32"
    moved, worked = resolve(traffic, sizes), resolve(work, sizes)
    floor = max(moved / bandwidth if bandwidth else 0.0, worked / speeds[arithmetic] if arithmetic in speeds else 0.0)
    return {
        "operations": [_operation(n) for n in nodes],
        "source": next((n.source for n in reversed(nodes) if n.source), ""),
        "kernel": name,
        "schedule": schedule,
        "bytes": format_dim(traffic),
        "work": format_dim(work),
        "bytes_here": moved,
        "work_here": worked,
        "floor_seconds": floor,
    }


def _copy(call: Call, sizes: Mapping[str, int], bandwidth: float | None) -> dict[str, Any]:
    """The row of a call that copies a result or the content of a state: every byte is read and written once."""
    source = call.inputs[-1]
    traffic: Any = 2 * product(source.shape) * _LOGICAL[source.dtype].itemsize
    moved = resolve(traffic, sizes)
    floor = moved / bandwidth if bandwidth else 0.0
    figures = {"bytes": format_dim(traffic), "work": "0", "bytes_here": moved, "work_here": 0, "floor_seconds": floor}
    return {"operations": [], "kernel": "copy", **figures, "calls": [_call(call)]}


def _call(call: Call) -> dict[str, Any]:
    """A call as the runtime reads it: each tensor as `NAME: TYPE`, with the type that this call sees."""
    return {
        "function": call.function,
        "inputs": [_argument(a) for a in call.inputs],
        "symbols": list(call.symbols),
        "results": [_argument(a) for a in call.results],
    }


def _argument(argument: Argument) -> str:
    shape = ", ".join(format_dim(d) for d in argument.shape)
    return f"{argument.name}: {DTYPE_NAMES[_LOGICAL[argument.dtype]]}[{shape}]"


_LOGICAL = {stored: dtype for dtype, stored in STORAGE.items() if dtype != torch.uint16}
"""The dtype that a type's text names for each storage dtype; uint16 holds the bits of bfloat16."""

_SCHEDULES = {
    "fused": "tasks of rows or of blocks of a row in parallel, the innermost axis in vectors",
    "fold": "kept elements in parallel, partial results side by side in vectors",
}


def _operation(node: Any) -> str:
    overload = tables.overload(node)
    return f"aten.{overload}" if overload else str(node.op.name)


def fused_traffic(step: FusedStep) -> Dim:
    """Bytes that a fused kernel must read and write once."""
    result = step.fused.value.type
    total: Any = product(result.shape) * result.dtype.itemsize
    for leaf in step.fused.leaves.values():
        total = total + product(leaf.type.shape) * leaf.stored.itemsize
    dim: Dim = total
    return dim


def fused_work(step: FusedStep) -> Dim:
    """One operation for each element of each computed result; what only moves counts nothing."""
    total: Any = 0
    for node in step.fused.nodes:
        rule = step.fused.rules.get(node)
        if rule is None:
            operand = node.inputs[0]
            assert operand is not None
            total = total + product(operand.type.shape)
        elif not rule.cheap:
            total = total + product(node.outputs[0].type.shape)
    dim: Dim = total
    return dim
