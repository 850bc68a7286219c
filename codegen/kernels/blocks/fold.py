"""A fold by all threads of a block, in any dtype: each thread its own elements, then halves of the threads in pairs.

The order of the combinations depends on the number of elements and threads alone.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.rows import RowBlock
from planish.codegen.simt.block import Block, rounded_bytes
from planish.codegen.tiles.float import Expr


def shared_bytes(threads: int, dtype: str) -> int:
    """Shared memory of one fold."""
    return rounded_bytes(threads, dtype)


def fold(
    block: Block,
    count: Expr | int,
    initial: Expr,
    combine: Callable[[Expr, Expr], Expr],
    value: Callable[[Expr], Expr],
    finish: Callable[[Expr], None],
) -> None:
    """Emit the fold of ``value(0) ... value(count - 1)``; one thread does `finish(total)`.

    Args:
        block: has a power of two of threads.
        count: number of elements, 0 included.
        initial: what folding starts from; folding it in several times changes nothing.
        combine, value: are called within phases, and may emit statements.
        finish: emits what is done with the total.
    """
    dtype = str(initial.ty.dtype)
    shared, own = block.shared("totals", block.threads, dtype), block.registers("own", 1, dtype)
    with block.phase() as thread:
        own[0] = initial

        def take(at: Expr) -> None:
            own[0] = combine(own[0], math.hold(value(at)))

        RowBlock(block, count).each(thread, take)
        T.buffer_store(shared, own[0], [thread])
    half = block.threads // 2
    while half:
        block.barrier()
        with block.phase() as thread:

            def join(thread: Expr = thread, half: int = half) -> None:
                T.buffer_store(shared, combine(shared[thread], shared[thread + half]), [thread])

            emit.branch(thread < half, join)
        half //= 2
    with block.phase() as thread:
        emit.branch(thread < 1, lambda: finish(math.hold(shared[0])))
