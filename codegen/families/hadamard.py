"""The Hadamard transform of rows of float32, alone or together with the quantisation that alone reads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels.blocks import hadamard as blocks
from planish.codegen.kernels.hadamard import Hadamard, table, transform
from planish.codegen.kernels.quantize_activation import QuantizeActivation
from planish.ir import Node
from planish.ir.ops import Hadamard as HadamardOp


@emitted_once
def _prim_func(config: Hadamard) -> Any:
    return transform(config)


@emitted_once
def _in_blocks(config: Hadamard, shared_bytes: int) -> Any:
    return blocks.transform(config, blocks.Plan(config, shared_bytes))


class HadamardFamily(Family):
    """Sums and differences in pairs, then columns times the matrix of a small order."""

    name: ClassVar[str] = "hadamard"
    ops: ClassVar[frozenset[str]] = frozenset({"hadamard"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        return transformed(node, site)


def transformed(
    node: Node, site: Site, quantize: QuantizeActivation | None = None, reader: Node | None = None
) -> Kernel | str:
    """The kernel of a transform, or with `quantize` of the transform and the node that quantises its result."""
    (x,) = node.inputs
    assert x is not None and isinstance(node.op, HadamardOp)
    width, rows = x.type.shape[-1], product(x.type.shape[:-1])
    if x.type.dtype != torch.float32:
        return f"Hadamard transforms of {x.type.dtype} have no kernel"
    assert isinstance(width, int)
    config = Hadamard(width, node.op.block, site.target.float_tile, quantize)
    make = partial(_prim_func, config)
    weights = (_packed(config.core),) if config.core > 1 else ()
    if site.target.blocks is not None:
        try:
            plan = blocks.Plan(config, site.target.blocks.shared_bytes)
        except ValueError as error:
            return str(error)
        make = partial(_in_blocks, config, site.target.blocks.shared_bytes)
        weights = (_packed_signs(config, plan),) if config.core > 1 else ()
    outputs = node.outputs if reader is None else reader.outputs
    results: list[Any] = [([rows, width], "float32")]
    if quantize is not None:
        results = [([rows, width], "int8"), ([rows, 1], "float32")]

    def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
        inputs = [to.view(operands[0], [rows, width]), *(to.weight(w) for w in weights)]
        made = to.call(make(), inputs, results)
        return [to.view(y, value.type.shape) for y, value in zip(made, outputs, strict=True)]

    names = "hadamard" if quantize is None else "hadamard + quantize_activation"
    written = 4 * width if quantize is None else width + 4
    return Kernel(
        name=f"{names}[{config.tile.name}]",
        schedule=f"a row {'at a time' if site.target.blocks is None else 'to a block'}: {config.power} elements in pairs"
        + (f", then a matrix of order {config.core}" if config.core > 1 else ""),
        reads=(0,),
        emit=emit,
        weights=weights,
        traffic=rows * (4 * width + written) + sum(4 * prod(w.shape) for w in weights),
        work=rows * (config.work + (0 if quantize is None else 3 * width)),
    )


def _packed_signs(config: Hadamard, plan: blocks.Plan) -> Packed:
    shape = (config.core, plan.groups, plan.words)
    return Packed(f"hadamard:{config.core}:{plan.groups}", torch.int32, shape, lambda: blocks.signs(config, plan))


def _packed(core: int) -> Packed:
    return Packed(f"hadamard:{core}", torch.float32, (core, core), lambda: table(core))
