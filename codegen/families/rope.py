"""Rotary position embeddings on float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Site
from planish.codegen.kernels import rope as kernels
from planish.codegen.stored import as_float32
from planish.ir import Node
from planish.ir.ops import Rope


@emitted_once
def _prim_func(config: kernels.Rope) -> Any:
    return kernels.rope(config)


class RopeFamily(Family):
    """Cosines and sines once for a token, for all of its heads."""

    name: ClassVar[str] = "rope"
    ops: ClassVar[frozenset[str]] = frozenset({"rope"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x, _, inv_freq = node.inputs
        op, param = node.op, site.param(inv_freq)
        assert x is not None and isinstance(op, Rope)
        heads, size = x.type.shape[2:]
        if x.type.dtype != torch.float32:
            return f"rotary embeddings of {x.type.dtype} have no kernel"
        if param is None or not isinstance(heads, int) or not isinstance(size, int):
            return "the frequencies or the sizes of the heads are known at run time only"
        (pairs,) = param.type.concrete({})
        config = kernels.Rope(heads, size, pairs, op.style, op.scale, site.target.float_tile)
        frequencies = as_float32(param)

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [operands[0], operands[1], to.weight(frequencies)]
            return to.call(_prim_func(config), inputs, [(node.output.type.shape, "float32")])

        elements = product(x.type.shape)
        return Kernel(
            name=f"{self.name}[{op.style}, {config.tile.name}]",
            schedule="a token at a time, vectors along its heads",
            reads=(0, 1),
            emit=emit,
            weights=(frequencies,),
            traffic=8 * elements,
            work=6 * elements,
        )
