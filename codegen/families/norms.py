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
from planish.codegen.kernels.quantize_activation import QuantizeActivation
from planish.codegen.stored import as_float32
from planish.ir import Node, Value
from planish.ir.ops import Aten, LayerNorm, RmsNorm


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
        return normed(node, site)


def normed(
    node: Node,
    site: Site,
    quantize: QuantizeActivation | None = None,
    reader: Node | None = None,
    added: Node | None = None,
) -> Kernel | str:
    """The kernel of a norm, or of more: of the node that quantises its result, and of the sum that it reads, which is then
    the last result."""
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
    in_blocks = site.target.blocks is not None
    if in_blocks and (quantize is not None or added is not None):
        return "norms in blocks of threads are alone"
    weights = tuple(as_float32(p) for p in params if p is not None)
    gain, bias = rest[0] is not None, len(rest) > 1 and rest[1] is not None
    config = Norm(width, op.eps, site.target.float_tile, gain, bias, added is not None, quantize)
    centred, rows = isinstance(op, LayerNorm), product(x.type.shape[:-1])
    make = _in_blocks if in_blocks else _prim_func
    whole = ([rows, width], "float32")
    made: list[Any] = [whole] if quantize is None else [([rows, width], "int8"), ([rows, 1], "float32")]
    sums = [whole] if added is not None else []
    outputs = (*(node if reader is None else reader).outputs, *(added.outputs if added is not None else ()))

    def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
        inputs = [*(to.view(o, [rows, width]) for o in operands if o is not None), *(to.weight(w) for w in weights)]
        found = to.call(make(centred, config), inputs, [*sums, *made])
        in_order = [*found[len(sums) :], *found[: len(sums)]]
        return [to.view(y, value.type.shape) for y, value in zip(in_order, outputs, strict=True)]

    def join(producer: Node, kept: bool) -> Kernel | None:
        both = normed(node, site, quantize, reader, producer) if kept and _is_sum(producer) else None
        return both if isinstance(both, Kernel) else None

    names = ["add"] * len(sums) + [op.name] + ["quantize_activation"] * (quantize is not None)
    written = 4 * width if quantize is None else width + 4
    return Kernel(
        name=f"{' + '.join(names)}[{config.tile.name}]",
        schedule="a row to a block" if in_blocks else "a row at a time, vectors along it",
        reads=(0,) if added is None else (0, 1),
        emit=emit,
        weights=weights,
        traffic=rows * (4 * width * (1 + 2 * len(sums)) + written),
        work=rows * width * ((6 if centred else 4) + len(sums) + (0 if quantize is None else 3)),
        join=None if added is not None else join,
    )


def _is_sum(node: Node) -> bool:
    """Whether a node adds two computed tensors of float32 and one shape, and nothing else."""
    if not isinstance(node.op, Aten) or node.op.overload != "add.Tensor" or node.op.keywords or len(node.inputs) != 2:
        return False
    type = node.output.type
    return type.dtype == torch.float32 and all(isinstance(o, Value) and o.type == type for o in node.inputs)
