"""Batched products of two activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.family import Emitter, Expr, Family, Kernel, Site
from planish.codegen.kernels.blocks import matmul as blocks
from planish.codegen.kernels.blocks.float_gemm import described, is_wide
from planish.codegen.kernels.matmul import Matmul, configurations, matmul
from planish.ir import Dim, Node


@emitted_once
def _prim_func(config: Matmul) -> Any:
    return matmul(config)


@emitted_once
def _in_blocks(config: Matmul, wide: bool) -> Any:
    return blocks.matmul(config, wide)


def _known(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


class MatmulFamily(Family):
    """y[b] = a[b] @ c[b] for every b."""

    name: ClassVar[str] = "matmul"
    ops: ClassVar[frozenset[str]] = frozenset({"aten.bmm.default"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        a, b = node.inputs
        assert a is not None and b is not None
        if a.type.dtype != torch.float32:
            return f"products of {a.type.dtype} have no kernel: cast to float32 first"
        batch, rows, depth = a.type.shape
        columns = b.type.shape[2]
        config = configurations(site.target.float_tile, _known(batch), _known(rows), _known(depth), _known(columns))[0]
        limits = site.target.blocks
        wide = limits is not None and is_wide(limits, batch, rows, columns)
        if limits is None:
            schedule = f"register tiles of {config.tile_rows} x {config.panel_width}, columns packed in blocks"
        else:
            schedule = described(wide)

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            function = _prim_func(config) if limits is None else _in_blocks(config, wide)
            return to.call(function, list(operands), [(node.output.type.shape, "float32")])

        return Kernel(
            name=f"{self.name}[{config.tile.name}]",
            schedule=schedule,
            reads=(0, 1),
            emit=emit,
            traffic=4 * batch * (rows * depth + depth * columns + rows * columns),
            work=2 * batch * rows * depth * columns,
        )
