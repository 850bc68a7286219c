"""The loops around elementwise kernels: which axes are walked together, what one task of one thread is.

The innermost loop runs over consecutive elements and contains nothing but the elements' arithmetic, so that LLVM makes
vectors of it. Few elements are computed sooner than a second thread wakes up: then the tasks run in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr, product
from planish.codegen.kernels import emit
from planish.codegen.pointwise.expression import Indices
from planish.ir import Dim, TensorType
from planish.ir.types import same_dim

CHUNK = 4096
"""Elements of the last axis in one task."""
PARALLEL_ELEMENTS = 1 << 15
"""Fewer elements than this are computed by the calling thread alone."""


def joint_axes(result: TensorType, operands: Sequence[TensorType]) -> list[list[int]]:
    """The result's axes in runs that can be walked as one: every operand has all axes of a run, or broadcasts all."""
    runs: list[list[int]] = []
    previous: list[bool] | None = None
    for axis in range(result.rank):
        if result.shape[axis] == 1 and runs:
            runs[-1].append(axis)
            continue
        kinds = [_varies(result, operand, axis) for operand in operands]
        # A run that so far has only axes of size 1 takes any other axis.
        if runs and (previous is None or kinds == previous):
            runs[-1].append(axis)
        else:
            runs.append([axis])
        previous = None if result.shape[axis] == 1 else kinds
    return runs


def _varies(result: TensorType, operand: TensorType, axis: int) -> bool:
    """Whether an operand varies along an axis of the result."""
    own = axis - (result.rank - operand.rank)
    return own >= 0 and same_dim(operand.shape[own], result.shape[axis])


def joined(type: TensorType, rank: int, runs: list[list[int]]) -> TensorType:
    """The type with each run of axes (counted in a result of that rank) made one axis."""
    missing = rank - type.rank
    dims: list[Dim] = []
    for run in runs:
        own = [type.shape[a - missing] for a in run if a >= missing]
        if own or dims:
            dims.append(product(own))
    return TensorType(type.dtype, tuple(dims))


def unravel(index: Expr, sizes: Sequence[Expr]) -> list[Expr]:
    """The indices along axes of these sizes of element number `index`, each computed once."""
    found: list[Expr] = []
    for size in reversed(sizes[1:]):
        found.append(emit.bind("axis", tirx.floormod(index, size)))
        index = tirx.floordiv(index, size)
    if sizes:
        found.append(emit.bind("axis", index))
    return found[::-1]


def for_each(shape: Sequence[Expr], element: Callable[[Indices], None], cost: int = 1) -> None:
    """Emit `element(indices)` for all indices of a tensor of that shape; `cost` weighs one element's arithmetic."""
    if not shape:
        element(())
        return
    *outer, inner = shape
    outer = list(outer)
    rows = emit.index(1)
    for size in outer:
        rows = rows * size
    whole = isinstance(inner, tirx.IntImm) and int(inner) <= CHUNK
    chunks = emit.index(1) if whole else emit.ceil_div(inner, CHUNK)

    def tasks(parallel: bool) -> None:
        with emit.loop("task", rows * chunks, parallel=parallel) as task:
            row = task if whole else tirx.floordiv(task, chunks)
            fixed = tuple(unravel(row, outer))
            if whole:
                with emit.loop("i", inner) as i:
                    element((*fixed, i))
                return
            start = emit.bind("start", tirx.floormod(task, chunks) * CHUNK)
            with emit.loop("i", T.min(inner - start, emit.index(CHUNK))) as i:
                element((*fixed, start + i))

    total = rows * inner
    few = total < PARALLEL_ELEMENTS // cost
    if isinstance(total, tirx.IntImm):
        tasks(parallel=int(total) >= PARALLEL_ELEMENTS // cost)
    else:
        emit.branch(few, lambda: tasks(False), lambda: tasks(True))
