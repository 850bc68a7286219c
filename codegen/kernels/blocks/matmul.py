"""Batched product of two activations in blocks; the arithmetic of `kernels/matmul.py`."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.float_gemm import Factor, Product, launch
from planish.codegen.kernels.matmul import Matmul


def matmul(config: Matmul, wide: bool) -> Any:
    """The PrimFunc of `kernels.matmul.matmul`: the same arguments; in tiles of 128 x 128 when `wide`."""

    def body() -> None:
        named = {"batch": config.batch, "rows": config.rows, "depth": config.depth, "columns": config.columns}
        batch, rows, depth, columns = (emit.symbol(n) if size is None else size for n, size in named.items())
        a = emit.argument("a", (batch, rows, depth), "float32")
        b = emit.argument("b", (batch, *((columns, depth) if config.transposed else (depth, columns))), "float32")
        y = emit.argument("y", (batch, rows, columns), "float32")
        launch(
            Product(
                batch,
                rows,
                columns,
                depth,
                Factor(lambda batch, row, k: a[batch, row, k], along_depth=True),
                Factor(
                    lambda batch, column, k: b[(batch, column, k) if config.transposed else (batch, k, column)],
                    along_depth=config.transposed,
                ),
                lambda batch, row, column, value: T.buffer_store(y, value, [batch, row, column]),
                wide,
            )
        )

    return emit.prim_func("matmul", body)
