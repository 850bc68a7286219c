"""RMS norm and layer norm with a row to a block: the arithmetic of `kernels/norms.py`, sums in the order of the threads."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.rows import RowBlock, threads_for
from planish.codegen.kernels.norms import Norm, arguments
from planish.codegen.simt.block import Block
from planish.codegen.tiles.float import Expr


def norm(config: Norm, centred: bool) -> Any:
    """The PrimFunc of `kernels.norms.rms_norm`, or of `layer_norm` when centred: the same arguments."""
    width, threads = config.width, threads_for(config.width)

    def body() -> None:
        rows, x, residual, weight, bias, total, y = arguments(config)

        def at_row(block: Block) -> None:
            (row,), along = block.index, RowBlock(block, width)
            source = x if total is None else total
            if total is not None:
                with block.phase() as thread:
                    along.each(thread, lambda k: T.buffer_store(total, x[row, k] + residual[row, k], [row, k]))
            zero = T.float32(0)
            mean = None
            if centred:
                mean = along.fold("mean", zero, lambda a, b: a + b, lambda k: source[row, k])
                with block.phase():
                    mean[0] = mean[0] / T.float32(width)

            def value(k: Expr) -> Expr:
                return source[row, k] if mean is None else source[row, k] - mean[0]

            def square(k: Expr) -> Expr:
                held = math.hold(value(k))
                return held * held

            scale = along.fold("scale", zero, lambda a, b: a + b, square)
            with block.phase() as thread:
                mean_square = scale[0] / T.float32(width)
                scale[0] = T.float32(1) / math.sqrt(mean_square + T.float32(config.epsilon))

                def write(k: Expr) -> None:
                    result, factor = value(k), scale[0]
                    if weight is not None:
                        result, factor = math.hold(result * factor), weight[k]
                    result = result * factor if bias is None else math.fma(result, factor, bias[k])
                    T.buffer_store(y, result, [row, k])

                along.each(thread, write)

        emit.launch((rows,), threads, at_row, RowBlock.shared_bytes(threads))

    return emit.prim_func("layer_norm" if centred else "rms_norm", body)
