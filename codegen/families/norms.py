"""Normalisations of rows: `rms_norm` and `layer_norm` on float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Site
from planish.codegen.kernels.blocks import norms as blocks
from planish.codegen.kernels.norms import Norm, layer_norm, rms_norm
from planish.codegen.stored import as_float32
from planish.ir import Node
from planish.ir.ops import LayerNorm, RmsNorm


@emitted_once
def _prim_func(centred: bool, config: Norm) -> Any:
    return layer_norm(config) if centred else rms_norm(config)


@emitted_once
def _in_blocks(centred: bool, config: Norm) -> Any:
    return blocks.norm(config, centred)


class NormFamily(Family):
    """One row at a time, statistics in two passes over a row that stays in the cache."""

    name: ClassVar[str] = "norm"
    ops: ClassVar[frozenset[str]] = frozenset({"rms_norm", "layer_norm"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x, *rest = node.inputs
        op = node.op
        assert x is not None and isinstance(op, (RmsNorm, LayerNorm))
        width = x.type.shape[-1]
        if x.type.dtype != torch.float32:
            return f"norms of {x.type.dtype} have no kernel"
        if not isinstance(width, int):
            return "the size of a row is not known"
        params = [site.param(operand) for operand in rest]
        if any(operand is not None and param is None for operand, param in zip(rest, params)):
            return "a gain or a bias is computed at run time"
        weights = tuple(as_float32(p) for p in params if p is not None)
        gain, bias = rest[0] is not None, len(rest) > 1 and rest[1] is not None
        config = Norm(width, op.eps, site.target.float_tile, weight=gain, bias=bias)
        centred, rows = isinstance(op, LayerNorm), product(x.type.shape[:-1])
        make = _prim_func if site.target.blocks is None else _in_blocks

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [to.view(operands[0], [rows, width]), *(to.weight(w) for w in weights)]
            (y,) = to.call(make(centred, config), inputs, [([rows, width], "float32")])
            return [to.view(y, node.output.type.shape)]

        return Kernel(
            name=f"{op.name}[{config.tile.name}]",
            schedule="a row at a time, vectors along it" if site.target.blocks is None else "a row to a block",
            reads=(0,),
            emit=emit,
            weights=weights,
            traffic=8 * rows * width,
            work=(6 if centred else 4) * rows * width,
        )
