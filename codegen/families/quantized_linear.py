"""Linear layers on int8 activations with weights of few bits in groups, and the quantisation of their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.families.hadamard import transformed
from planish.codegen.families.norms import normed
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels.blocks import linear_int4_layer as int4_blocks
from planish.codegen.kernels.blocks import linear_low_bit as blocks
from planish.codegen.kernels.blocks import quantize_activation as quantize_blocks
from planish.codegen.kernels.blocks.linear_int4 import linear_int4 as block_linear_int4
from planish.codegen.kernels.blocks.linear_int4_packing import PRODUCT, BlockInt4Layout
from planish.codegen.kernels.blocks.linear_low_bit_layer import BlockLowBit
from planish.codegen.kernels.linear_low_bit import linear_low_bit
from planish.codegen.kernels.linear_low_bit_config import LowBitLinear, configurations, pack_weight
from planish.codegen.kernels.quantize_activation import QuantizeActivation, quantize_activation
from planish.codegen.stored import as_float32
from planish.ir import Grouped, GroupedInt, Node, Param
from planish.ir.ops import Hadamard, LayerNorm, RmsNorm
from planish.ir.ops import QuantizeActivation as QuantizeActivationOp


@emitted_once
def _linear(config: LowBitLinear) -> Any:
    return linear_low_bit(config)


@emitted_once
def _quantize(config: QuantizeActivation) -> Any:
    return quantize_activation(config)


@emitted_once
def _quantize_in_blocks(config: QuantizeActivation) -> Any:
    return quantize_blocks.quantize_activation(config)


@emitted_once
def _int4_in_blocks(config: int4_blocks.BlockLinearInt4) -> Any:
    return block_linear_int4(config)


@emitted_once
def _in_blocks(config: BlockLowBit) -> Any:
    return blocks.linear_low_bit(config)


@dataclass(frozen=True)
class _Variant:
    """One way to compute a layer: the PrimFunc of (x, its scales, weights..., [bias], y), and words for the report."""

    function: Callable[[], Any]
    weights: tuple[Packed, ...]
    tile: str
    schedule: str


class QuantizedLinearFamily(Family):
    """y = scale * sum over groups of exact integer products * group scale."""

    name: ClassVar[str] = "linear_low_bit"
    ops: ClassVar[frozenset[str]] = frozenset({"quantized_linear"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        codes, scale, weight, bias = node.inputs
        assert codes is not None and scale is not None
        param, added = site.param(weight), site.param(bias)
        if scale.type.dtype != torch.float32:
            return f"activations with scales of {scale.type.dtype} have no low-bit linear kernel"
        if param is None or (bias is not None and added is None):
            return "the weight or the bias is computed at run time"
        encoding = param.encoding
        if not isinstance(encoding, Grouped):
            return f"the weight is encoded as {encoding}, not in groups of integer levels"
        outs, ins = param.type.concrete({})
        try:
            variant = (_of_blocks if site.target.blocks else _of_vectors)(param, bias is not None, site)
        except ValueError as error:
            return str(error)
        packed_bytes = sum(prod(w.shape) * w.dtype.itemsize for w in variant.weights)
        weights = variant.weights if added is None else (*variant.weights, as_float32(added))
        rows = product(codes.type.shape[:-1])

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [to.view(operands[0], [rows, ins]), to.view(operands[1], [rows, 1])]
            inputs += [to.weight(w) for w in weights]
            (y,) = to.call(variant.function(), inputs, [([rows, outs], "float32")])
            return [to.view(y, node.output.type.shape)]

        return Kernel(
            name=f"{self.name}[{encoding}, {variant.tile}]",
            schedule=variant.schedule,
            reads=(0, 1),
            emit=emit,
            weights=weights,
            traffic=packed_bytes + rows * (ins + 4) + 4 * rows * outs,
            work=2 * rows * ins * outs,
            arithmetic="int8",
        )


_INT4_BLOCKS = "16 or 32 output features to a block, or 128 of them and up to 128 rows; codes through shared memory"


def _of_vectors(param: Param, bias: bool, site: Site) -> _Variant:
    """The kernel of a processor; raises ValueError, saying why, where there is none."""
    encoding, (outs, ins) = param.encoding, param.type.concrete({})
    assert isinstance(encoding, Grouped)
    config = configurations(site.target.int8_tile, ins, outs, encoding, bias)[0]
    schedule = f"register tiles of {config.rows} rows x {config.vectors} vectors, {config.task_panels} panels a task"
    return _Variant(partial(_linear, config), (_packed(param, config),), config.tile.name, schedule)


def _of_blocks(param: Param, bias: bool, site: Site) -> _Variant:
    """The kernel in blocks of threads; raises ValueError, saying why, where there is none."""
    limits, encoding, (outs, ins) = site.target.blocks, param.encoding, param.type.concrete({})
    assert limits is not None and isinstance(encoding, Grouped)
    of_int4 = isinstance(encoding, GroupedInt) and encoding.bits == 4 and not encoding.zero_points
    if of_int4 and encoding.group % PRODUCT == 0:
        layout = BlockInt4Layout(outs, ins, encoding.group, str(encoding.scale_dtype).removeprefix("torch."))
        of_blocks = int4_blocks.configure(layout, bias, limits)
        weight = _packed_int4(param, of_blocks)
        return _Variant(partial(_int4_in_blocks, of_blocks), (weight,), "s8 products", _INT4_BLOCKS)
    config = BlockLowBit(ins, outs, encoding, bias)
    packed = tuple(_packed_field(param, config, field) for field in config.stored)
    return _Variant(partial(_in_blocks, config), packed, "s8 products", blocks.SCHEDULE)


def _packed_int4(param: Param, config: int4_blocks.BlockLinearInt4) -> Packed:
    def make() -> torch.Tensor:
        storage = param.storage()
        return config.layout.pack(storage["values"], storage["scales"])

    return Packed(f"{param.name}:int4 in blocks", torch.uint8, config.layout.shape, make)


def _packed_field(param: Param, config: BlockLowBit, field: str) -> Packed:
    dtype, shape = config.stored[field]
    return Packed(f"{param.name}:{field} in panels", dtype, shape, lambda: config.pack(field, param.storage()))


def _packed(param: Param, config: LowBitLinear) -> Packed:
    layout = config.layout
    key = f"{param.name}:{layout.lanes}x{layout.depth}x{layout.vectors}{'s' if layout.flipped else ''}"

    def make() -> torch.Tensor:
        return pack_weight(config, param.storage())

    return Packed(key, torch.uint8, config.packed_shape, make)


def _joined(node: Node, site: Site, config: QuantizeActivation, producer: Node, kept: bool) -> Kernel | None:
    """The kernel of a quantisation and of what makes its rows, if a row need not lie in memory for another reader."""
    makers = {Hadamard.name: transformed, RmsNorm.name: normed, LayerNorm.name: normed}
    if kept or producer.op.name not in makers:
        return None
    both = makers[producer.op.name](producer, site, config, node)
    return both if isinstance(both, Kernel) else None


class QuantizeActivationFamily(Family):
    """Codes of up to eight bits, as int8, and one scale for each row."""

    name: ClassVar[str] = "quantize_activation"
    ops: ClassVar[frozenset[str]] = frozenset({"quantize_activation"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x = node.inputs[0]
        assert x is not None
        size = x.type.shape[-1]
        if x.type.dtype != torch.float32:
            return f"activations of {x.type.dtype} have no quantisation kernel"
        if not isinstance(size, int):
            return f"rows of a size known only at run time ({size}) have no quantisation kernel"
        assert isinstance(node.op, QuantizeActivationOp)
        config = QuantizeActivation(size, site.target.float_tile, node.op.largest)
        rows = product(x.type.shape[:-1])
        make = _quantize if site.target.blocks is None else _quantize_in_blocks

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            results = [([rows, size], "int8"), ([rows, 1], "float32")]
            codes, scale = to.call(make(config), [to.view(operands[0], [rows, size])], results)
            return [to.view(t, v.type.shape) for t, v in zip((codes, scale), node.outputs)]

        return Kernel(
            name=f"{self.name}[{config.tile.name}]",
            schedule="rows in parallel, vectors along a row" if site.target.blocks is None else "a row to a block",
            reads=(0,),
            emit=emit,
            traffic=rows * (5 * size + 4),
            work=3 * rows * size,
            join=partial(_joined, node, site, config),
        )
