"""Dense linear layer in blocks: ``y[M, N] = x[M, K] @ weight[N, K]^T (+ bias)``, the weight as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.float_gemv import DenseMatrix
from planish.codegen.kernels.blocks.linear_rows import LinearRows
from planish.codegen.pointwise.dtypes import STORAGE, loaded
from planish.codegen.tiles.float import Expr


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

        def element(column: Expr, k: Expr) -> Expr:
            return loaded(weight[column, k], dtype)

        matrix = DenseMatrix(weight, dtype, ins)
        LinearRows(x, rows, outs, ins, matrix, element, store, config.multiprocessors).launch()

    return emit.prim_func("linear_dense", body)
