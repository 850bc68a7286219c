"""Softmax with a row to a block; the arithmetic of `kernels/softmax.py`, its sum in the order of the threads."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.rows import RowBlock, threads_for
from planish.codegen.kernels.softmax import Softmax
from planish.codegen.simt.block import Block
from planish.codegen.tiles.float import Expr


def softmax(config: Softmax) -> Any:
    """The PrimFunc of `kernels.softmax.softmax`: the same arguments."""
    threads = threads_for(config.width)

    def body() -> None:
        rows = emit.symbol("rows")
        width = emit.symbol("width") if config.width is None else config.width
        x = emit.argument("x", (rows, width), "float32")
        y = emit.argument("y", (rows, width), "float32")

        def at_row(block: Block) -> None:
            (row,), along = block.index, RowBlock(block, width)
            # A NaN that a comparison loses here comes back in its own power.
            largest = along.fold("largest", T.float32(float("-inf")), math.maximum, lambda k: x[row, k])

            def power(k: Expr) -> Expr:
                held = math.hold(math.exp_nonpositive(x[row, k] - largest[0]))
                T.buffer_store(y, held, [row, k])
                return held

            divisor = along.fold("divisor", T.float32(0), lambda a, b: a + b, power)
            with block.phase() as thread:
                along.each(thread, lambda k: T.buffer_store(y, y[row, k] / divisor[0], [row, k]))

        emit.launch((rows,), threads, at_row, RowBlock.shared_bytes(threads))

    return emit.prim_func("softmax", body)
