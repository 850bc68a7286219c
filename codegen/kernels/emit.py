"""Small words for writing TIR from Python: named functions, arguments, loops and vector accesses.

Kernels are emitted rather than written as TVMScript text, because a register tile is an unrolled block whose extent is
a parameter: Python loops unroll it, and one emitter serves every kernel. All indices are int64, as Relax has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.simt.block import Block
from planish.codegen.tiles.float import Expr


def prim_func(name: str, body: Callable[[], None]) -> Any:
    """The PrimFunc ``name`` whose arguments and statements ``body`` emits. Its buffers must not overlap in memory."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        # `is_scheduled` keeps automatic schedules away from loops whose order is part of the result.
        T.func_attr({"global_symbol": name, "tirx.noalias": True, "tirx.is_scheduled": True})
        body()
    return builder.get()


def symbol(name: str) -> Expr:
    """A size known only when the kernel is called."""
    return tirx.Var(name, "int64")


def argument(name: str, shape: Sequence[Expr | int], dtype: str) -> Expr:
    """The next argument of the function: a contiguous tensor, which may lie at any address its elements may.

    TVM would assume 64 bytes; a tensor mapped from a file or cut from another one then ends in a segmentation fault.
    """
    align = np.dtype(dtype).itemsize
    return T.arg(name, T.buffer([index(extent) for extent in shape], dtype, align=align))


def index(value: Expr | int) -> Expr:
    """``value`` as an int64 expression."""
    return T.int64(value) if isinstance(value, int) else value


def bind(name: str, value: Expr) -> Expr:
    """``value``, an int64, computed once and then opaque to TVM's simplifier.

    It goes through a one-element buffer, which LLVM makes a register again. Left as an expression, or bound to a
    variable, it is simplified anew under every condition and in every index made from it: seconds for one kernel.
    """
    cell = IRBuilder.name(name, current().buffer((1,), "int64"))
    T.buffer_store(cell, value, [0])
    return cell[0]


def ceil_div(value: Expr | int, divisor: Expr | int) -> Any:
    """``ceil(value / divisor)`` for sizes, at least 0 each."""
    return (value + (divisor - 1)) // divisor


def loop(name: str, extent: Expr | int) -> _Loop:
    """``with loop("k", extent) as k``: a serial loop from 0."""
    return _Loop(name, T.serial(index(extent)))


def tasks(name: str, extent: Expr | int) -> _Loop:
    """``with tasks("task", extent) as task``: the loop whose iterations may run on several threads, in any order."""
    if isinstance(extent, int) and extent == 1 and not current().fine_grained:
        return loop(name, 1)
    return _Loop(name, current().parallel(index(extent)))


def some_tasks(name: str, extent: Expr | int, few: Expr | bool, body: Callable[[Expr], None]) -> None:
    """``body(task)`` for every task; where ``few`` is true, waking other threads costs more than they save."""

    def visit(frame: _Loop) -> None:
        with frame as task:
            body(task)

    if current().fine_grained:
        visit(tasks(name, extent))
    else:
        branch(few, lambda: visit(loop(name, extent)), lambda: visit(tasks(name, extent)))


def unrolled(name: str, extent: int) -> _Loop:
    """``with unrolled("row", 6) as row``: the body repeated, by TVM, after its costly passes have seen it once."""
    return _Loop(name, T.unroll(index(extent)))


class _Loop:
    def __init__(self, name: str, frame: Any) -> None:
        self._name, self._frame = name, frame

    def __enter__(self) -> Expr:
        variable = self._frame.__enter__()
        return IRBuilder.name(self._name, variable) if isinstance(variable, tirx.Var) else variable

    def __exit__(self, *error: object) -> None:
        self._frame.__exit__(*error)


def scratch(name: str, size: Expr | int, dtype: str = "float32") -> Expr:
    """A one-dimensional buffer in memory that lives until the end of the enclosing block."""
    return IRBuilder.name(name, current().buffer([index(size)], dtype))


def view(name: str, buffer: Expr, size: Expr | int, dtype: str | None = None) -> Expr:
    """The same memory as the argument ``buffer``, a contiguous tensor, as ``size`` elements in one dimension: its own, or of
    another dtype."""
    dtype = str(buffer.ty.dtype) if dtype is None else dtype
    flat = T.decl_buffer([index(size)], dtype, data=buffer.data, align=np.dtype(dtype).itemsize)
    return IRBuilder.name(name, flat)


LARGEST_REGISTERS = 255
"""float32 elements that :func:`registers` may have: from 1024 bytes on, TVM takes a buffer from the heap, as it does
with every buffer of scope "local"; only what is on the stack becomes registers."""


def registers(name: str, size: int) -> Expr:
    """A float32 buffer accessed only at constant positions, which LLVM therefore keeps in registers."""
    assert size <= LARGEST_REGISTERS, size
    return IRBuilder.name(name, current().buffer((size,), "float32"))


def load(buffer: Expr, indices: Sequence[Expr | int], lanes: int) -> Expr:
    """``lanes`` consecutive elements of the last dimension, from ``indices`` on."""
    return buffer[(*indices[:-1], indices[-1] if lanes == 1 else T.ramp(indices[-1], 1, lanes))]


def store(buffer: Expr, indices: Sequence[Expr | int], vector: Expr, lanes: int) -> None:
    """Emit the store of ``vector`` to ``lanes`` consecutive elements of the last dimension."""
    T.buffer_store(buffer, vector, [*indices[:-1], indices[-1] if lanes == 1 else T.ramp(indices[-1], 1, lanes)])


def prefetch(buffer: Expr, indices: Sequence[Expr | int], once: bool = False) -> None:
    """Ask for the cache line of one element ahead of its use; a place outside the buffer does no harm.

    What is used `once` leaves the caches to what is used again.
    """
    current().prefetch(T.address_of(buffer[tuple(indices)]), once)


def launch(
    blocks: Sequence[Expr | int],
    threads: int,
    body: Callable[[Block], None],
    shared_bytes: int = 0,
    early: bool = False,
) -> None:
    """Emit a grid of blocks of threads; see `Dialect.launch`."""
    current().launch(tuple(index(extent) for extent in blocks), threads, body, shared_bytes, early)


def unshared(body: Callable[[Block], None]) -> Callable[[Block], None]:
    """A block's body for which one block to a multiprocessor is enough, so that it may have all registers.

    ptxas would spill a few of them to make room for one block more.
    """

    def alone(block: Block) -> None:
        with T.attr(tirx.IntImm("int32", 0), "tirx.launch_bounds_min_blocks_per_sm", T.int32(1)):
            body(block)

    return alone


def branch(condition: Expr | bool, then: Callable[[], None], otherwise: Callable[[], None] | None = None) -> None:
    """Emit ``if condition: then() else: otherwise()``; a condition known now leaves only the side it selects."""
    if isinstance(condition, bool):
        if condition:
            then()
        elif otherwise is not None:
            otherwise()
        return
    with T.If(condition):
        with T.Then():
            then()
        if otherwise is not None:
            with T.Else():
                otherwise()
