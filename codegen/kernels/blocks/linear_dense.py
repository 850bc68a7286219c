"""Dense linear layer in blocks: ``y[M, N] = x[M, K] @ weight[N, K]^T (+ bias)``, the weight as it is stored.

Few rows are taken together at the speed of memory (`float_gemv`), more as a matrix product (`float_gemm`). The number of
rows is known at the latest when the kernel is called, and decides then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks import float_gemm, float_gemv
from planish.codegen.kernels.blocks.float_gemm import Factor, Product
from planish.codegen.kernels.blocks.float_gemv import FewRows
from planish.codegen.pointwise.dtypes import STORAGE, loaded
from planish.codegen.tiles.float import Expr

HEIGHTS = (1, 4, 8)
"""Numbers of rows for which there is a kernel that reads the weight once."""

SCHEDULE = f"a warp to {float_gemv.COLUMNS} columns for up to {HEIGHTS[-1]} rows, {float_gemm.described(False)} beyond"


@dataclass(frozen=True)
class LinearBlocks:
    """One dense linear kernel.

    Attributes:
        in_features, out_features: K and N.
        weight_dtype: logical dtype of the weight: float32, float16 or bfloat16.
        bias: whether the kernel takes a float32 bias (N,).
        rows: M, or None when only the call knows it.
        multiprocessors: of the machine, each of which should have work.
    """

    in_features: int
    out_features: int
    weight_dtype: torch.dtype
    bias: bool
    rows: int | None
    multiprocessors: int


def linear_dense(config: LinearBlocks) -> Any:
    """The PrimFunc ``(x (M, K), weight (N, K), [bias (N,)], y (M, N))``; all float32 but the weight."""
    ins, outs, dtype = config.in_features, config.out_features, config.weight_dtype

    def body() -> None:
        rows = emit.symbol("rows") if config.rows is None else config.rows
        x = emit.argument("x", (rows, ins), "float32")
        weight = emit.argument("weight", (outs, ins), STORAGE[dtype])
        bias = emit.argument("bias", (outs,), "float32") if config.bias else None
        y = emit.argument("y", (rows, outs), "float32")

        def store(row: Expr, column: Expr, value: Expr) -> None:
            T.buffer_store(y, value if bias is None else value + bias[column], [row, column])

        def product(wide: bool) -> None:
            left = Factor(lambda batch, row, k: x[row, k], along_depth=True)
            right = Factor(lambda batch, column, k: loaded(weight[column, k], dtype), along_depth=True)

            def store_product(batch: Expr, row: Expr, column: Expr, value: Expr) -> None:
                store(row, column, value)

            float_gemm.launch(Product(1, rows, outs, ins, left, right, store_product, wide))

        def products() -> None:
            tiles = emit.ceil_div(rows, float_gemm.WIDE) * emit.ceil_div(outs, float_gemm.WIDE)
            emit.branch(tiles >= 2 * config.multiprocessors, lambda: product(True), lambda: product(False))

        def few(height: int) -> None:
            float_gemv.launch(FewRows(x, weight, dtype, rows, outs, ins, height, store))

        def at_most(heights: tuple[int, ...]) -> None:
            if not heights:
                products()
                return
            height, *higher = heights
            emit.branch(rows <= height, lambda: few(height), lambda: at_most(tuple(higher)))

        at_most(HEIGHTS)

    return emit.prim_func("linear_dense", body)
