"""The squared rectifier on the machine's vectors, a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Site
from planish.codegen.kernels import emit
from planish.codegen.kernels.vectors import Row, for_rows
from planish.codegen.tiles.float import FloatTile
from planish.ir import Node


@lru_cache(maxsize=64)
def squared_relu(tile: FloatTile, width: int) -> Any:
    """The PrimFunc ``(x (M, N), y (M, N))``, float32."""

    def body() -> None:
        rows = emit.symbol("rows")
        x = emit.argument("x", (rows, width), "float32")
        y = emit.argument("y", (rows, width), "float32")

        def at_row(row: Expr) -> None:
            def write(at: Any) -> None:
                positive = math.hold(math.maximum(at.load(x, row), tile.broadcast(T.float32(0))))
                at.store(y, positive * positive, row)

            Row(tile, width).for_vectors(write)

        for_rows(rows, 2 * width, at_row)

    return emit.prim_func("squared_relu", body)


class SquaredReluFamily(Family):
    """float32, along the last axis."""

    name: ClassVar[str] = "squared_relu"
    ops: ClassVar[frozenset[str]] = frozenset({"squared_relu"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x = node.inputs[0]
        assert x is not None
        if x.type.dtype != torch.float32:
            return f"squared_relu of {x.type.dtype} has no kernel"
        width = x.type.shape[-1] if x.type.rank else None
        if not isinstance(width, int):
            return "squared_relu of rows whose width is known at run time only has no kernel"
        rows, tile = product(x.type.shape[:-1]), site.target.float_tile

        def run(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            shape = [rows, width]
            (y,) = to.call(squared_relu(tile, width), [to.view(operands[0], shape)], [(shape, "float32")])
            return [to.view(y, node.output.type.shape)]

        return Kernel(
            name=f"{self.name}[{tile.name}]",
            schedule="a row at a time, vectors along it",
            reads=(0,),
            emit=run,
            traffic=8 * rows * width,
            work=2 * rows * width,
        )
