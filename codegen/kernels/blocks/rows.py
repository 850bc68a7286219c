"""A row to a block of threads: what norms, softmax and quantisation share.

Thread t visits elements t, t + threads, ...; what it folds is combined within each warp, and the warps' results in shared
memory, always in the same order. So the bits of a row depend on its width alone.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.simt.block import WARP, Block, Registers, rounded_bytes, warp_total
from planish.codegen.tiles.float import Expr

LARGEST_THREADS = 512


def threads_for(width: int | None) -> int:
    """Threads of a block for rows of that width; None when only the call knows it."""
    if width is None:
        return 256
    return max(WARP, min(LARGEST_THREADS, 1 << (-(-width // 4) - 1).bit_length()))


class RowBlock:
    """One row of `width` elements in one block."""

    def __init__(self, block: Block, width: Expr | int) -> None:
        self.block, self.width = block, width
        self.warps = block.threads // WARP
        self._shared: dict[str, Expr] = {}

    @staticmethod
    def shared_bytes(threads: int, dtypes: tuple[str, ...] = ("float32",)) -> int:
        """Shared memory for folds in these dtypes."""
        return sum(rounded_bytes(threads // WARP, dtype) for dtype in dtypes)

    def each(self, thread: Expr, body: Callable[[Expr], None]) -> None:
        """Within a phase: `body(column)` for the thread's elements."""
        steps = emit.ceil_div(self.width, self.block.threads)
        with emit.loop("step", steps) as step:
            column = emit.bind("column", step * self.block.threads + T.cast(thread, "int64"))
            if isinstance(self.width, int) and self.width % self.block.threads == 0:
                body(column)
            else:
                emit.branch(column < self.width, lambda: body(column))

    def fold(
        self, name: str, initial: Expr, combine: Callable[[Expr, Expr], Expr], value: Callable[[Expr], Expr]
    ) -> Registers:
        """`value(column)` of all columns combined; the result is element 0 of every thread's register."""
        dtype = str(initial.ty.dtype)
        partial = self.block.registers(name, 1, dtype)
        with self.block.phase() as thread:
            partial[0] = initial

            def take(column: Expr) -> None:
                partial[0] = combine(partial[0], math.hold(value(column)))

            self.each(thread, take)
        warp_total(self.block, partial, combine)
        if self.warps == 1:
            return partial
        if dtype not in self._shared:
            self._shared[dtype] = self.block.shared(f"of_warps_{dtype}", self.warps, dtype)
        shared = self._shared[dtype]
        self.block.barrier()
        with self.block.phase() as thread:
            emit.branch(thread % WARP < 1, lambda: T.buffer_store(shared, partial[0], [thread // WARP]))
        self.block.barrier()
        with self.block.phase() as thread:
            partial[0] = shared[0]
            for warp in range(1, self.warps):
                partial[0] = combine(partial[0], shared[warp])
        return partial
