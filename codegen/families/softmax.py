"""Softmax of rows of float32: along the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Site
from planish.codegen.kernels import softmax as kernels
from planish.codegen.kernels.blocks import softmax as blocks
from planish.codegen.legalise import bound_arguments
from planish.ir import Node


@emitted_once
def _prim_func(config: kernels.Softmax) -> Any:
    return kernels.softmax(config)


@emitted_once
def _in_blocks(config: kernels.Softmax) -> Any:
    return blocks.softmax(config)


class SoftmaxFamily(Family):
    """A row at a time: its maximum, its powers and their sum, the quotients. Other axes are written out."""

    name: ClassVar[str] = "softmax"
    ops: ClassVar[frozenset[str]] = frozenset({"aten.softmax.int", "aten._softmax.default"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x = node.inputs[0]
        assert x is not None
        if x.type.dtype != torch.float32 or node.output.type.dtype != torch.float32:
            return f"softmax of {x.type.dtype} has no kernel"
        if x.type.rank == 0 or int(bound_arguments(node)["dim"]) % x.type.rank != x.type.rank - 1:
            return "softmax along an axis that is not the last has no kernel"
        width, rows = x.type.shape[-1], product(x.type.shape[:-1])
        config = kernels.Softmax(width if isinstance(width, int) else None, site.target.float_tile)
        make = _prim_func if site.target.blocks is None else _in_blocks

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            shape = [rows, width]
            (y,) = to.call(make(config), [to.view(operands[0], shape)], [(shape, "float32")])
            return [to.view(y, node.output.type.shape)]

        elements = rows * width
        return Kernel(
            name=f"{self.name}[{config.tile.name}]",
            schedule="a row at a time, vectors along it" if site.target.blocks is None else "a row to a block",
            reads=(0,),
            emit=emit,
            traffic=8 * elements,
            work=8 * elements,
        )
