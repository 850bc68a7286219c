"""The loops around elementwise kernels: which axes are walked together, what one task of one thread is.

The innermost loop runs over consecutive elements and contains nothing but the elements' arithmetic, so that LLVM makes
vectors of it. Few elements are computed sooner than a second thread wakes up: then the tasks run in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.dims import Expr, product
from planish.codegen.kernels import emit
from planish.codegen.pointwise.expression import Indices
from planish.ir import Dim, TensorType
from planish.ir.types import same_dim

CHUNK = 4096
"""Elements of the last axis in one task."""
TURNED_BLOCK, LAST_BLOCK = 16, 64
"""Elements of one block of a transposition: a cache line of what is read, some lines of what is written."""
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


def for_each(
    shape: Sequence[Expr], element: Callable[[Indices], None], cost: int = 1, turned: int | None = None
) -> None:
    """Emit `element(indices)` for all indices of a tensor of that shape; `cost` weighs one element's arithmetic.

    `turned` is an axis along which what is read lies contiguously while the result does so along the last: the two are
    then walked in blocks, within which every cache line that is touched is used up.
    """
    total = emit.index(1)
    for size in shape:
        total = total * size
    if current().fine_grained:
        with emit.tasks("element", total) as number:
            element(tuple(unravel(number, shape)))
        return
    if not shape:
        element(())
        return

    enough = max(1, PARALLEL_ELEMENTS // cost)
    # Opaque, or TVM concludes from a side that only empty tensors take that sizes are 0, and divides by them.
    few = int(total) < enough if isinstance(total, tirx.IntImm) else emit.bind("elements", total) < enough
    if turned is None:
        _rows(shape, element, few)
    else:
        _blocks(shape, turned, element, few)


def _rows(shape: Sequence[Expr], element: Callable[[Indices], None], few: Expr | bool) -> None:
    """Tasks of some outer indices, or of a chunk of the last axis where that is long or its size unknown."""
    *outer, inner = shape
    nested = _small_axes(shape)
    outer, within = outer[: len(outer) - nested], outer[len(outer) - nested :]
    rows = emit.index(1)
    for size in outer:
        rows = rows * size
    whole = _known(inner) is not None and int(inner) <= CHUNK
    chunks = emit.index(1) if whole else emit.ceil_div(inner, CHUNK)

    def visit(task: Expr) -> None:
        with ExitStack() as stack:
            fixed = unravel(task if whole else tirx.floordiv(task, chunks), outer)
            fixed += [stack.enter_context(emit.loop("j", size)) for size in within]
            if whole:
                with emit.loop("i", inner) as i:
                    element((*fixed, i))
                return
            start = emit.bind("start", tirx.floormod(task, chunks) * CHUNK)
            with emit.loop("i", T.min(inner - start, emit.index(CHUNK))) as i:
                element((*fixed, start + i))

    emit.some_tasks("task", rows * chunks, few, visit)


def _small_axes(shape: Sequence[Expr]) -> int:
    """How many axes before the last belong into a task as loops, because their elements together are few."""
    together = _known(shape[-1])
    count = 0
    for size in reversed(shape[:-1]):
        known = _known(size)
        if together is None or known is None or together * known > CHUNK:
            break
        together, count = together * known, count + 1
    return count


def _known(size: Expr) -> int | None:
    return int(size) if isinstance(size, tirx.IntImm) else None


def _blocks(shape: Sequence[Expr], turned: int, element: Callable[[Indices], None], few: Expr | bool) -> None:
    """Tasks of a block of the turned and the last axis each."""
    others = [size for axis, size in enumerate(shape[:-1]) if axis != turned]
    counts = [emit.ceil_div(shape[turned], TURNED_BLOCK), emit.ceil_div(shape[-1], LAST_BLOCK)]
    rows = counts[0] * counts[1]
    for size in others:
        rows = rows * size

    def visit(task: Expr) -> None:
        *fixed, first, second = unravel(task, [*others, *counts])
        u0, v0 = emit.bind("u0", first * TURNED_BLOCK), emit.bind("v0", second * LAST_BLOCK)
        with (
            emit.loop("u", T.min(shape[turned] - u0, emit.index(TURNED_BLOCK))) as u,
            emit.loop("v", T.min(shape[-1] - v0, emit.index(LAST_BLOCK))) as v,
        ):
            indices = [*fixed[:turned], u0 + u, *fixed[turned:], v0 + v]
            element(tuple(indices))

    emit.some_tasks("task", rows, few, visit)
