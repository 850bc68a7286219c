"""Two-dimensional convolutions on float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels import conv2d as kernels
from planish.codegen.kernels.blocks import conv2d as blocks
from planish.codegen.kernels.blocks.float_gemm import described, is_wide
from planish.codegen.kernels.conv2d_geometry import ConvGeometry
from planish.codegen.stored import as_float32
from planish.codegen.target import BlockLimits
from planish.ir import Dim, Node, Param
from planish.ir.ops import Conv2d


@emitted_once
def _prim_func(config: kernels.Conv2d) -> Any:
    return kernels.conv2d(config)


@emitted_once
def _in_blocks(config: blocks.ConvBlocks) -> Any:
    return blocks.conv2d(config)


class Conv2dFamily(Family):
    """Direct convolution: register tiles of channels by pixels, weights packed by tile; on GPUs, a matrix product."""

    name: ClassVar[str] = "conv2d"
    ops: ClassVar[frozenset[str]] = frozenset({"conv2d"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x, weight, bias = node.inputs
        op, param, added = node.op, site.param(weight), site.param(bias)
        assert x is not None and isinstance(op, Conv2d)
        batch, channels, height, width = x.type.shape
        if x.type.dtype != torch.float32:
            return f"convolutions of {x.type.dtype} have no kernel"
        if param is None or (bias is not None and added is None):
            return "the weight or the bias is computed at run time"
        if not isinstance(channels, int) or not isinstance(height, int) or not isinstance(width, int):
            return "the size of the image is known at run time only: give it fixed sizes when tracing"
        outs, _, *kernel = param.type.concrete({})
        has_bias, limits = bias is not None, site.target.blocks
        function: Callable[[], Any]
        try:
            geometry = ConvGeometry((height, width), (kernel[0], kernel[1]), op.stride, op.padding, op.dilation)
            if limits is None:
                tile = site.target.float_tile
                config = kernels.configurations(tile, channels, outs, op.groups, geometry, has_bias)[0]
                function, weights = partial(_prim_func, config), [_packed(param, config)]
                schedule = f"register tiles of {config.rows} channels x {config.panel_width} pixels"
            else:
                in_blocks = _blocks_config(channels, outs, op.groups, geometry, has_bias, batch, limits)
                function, weights = partial(_in_blocks, in_blocks), [as_float32(param)]
                schedule = "a pixel to a thread" if in_blocks.is_direct else described(in_blocks.wide)
        except ValueError as error:
            return str(error)
        if added is not None:
            weights.append(as_float32(added))

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [operands[0], *(to.weight(w) for w in weights)]
            return to.call(function(), inputs, [(node.output.type.shape, "float32")])

        pixels = geometry.out[0] * geometry.out[1]
        reach = (channels // op.groups) * kernel[0] * kernel[1]
        return Kernel(
            name=f"{self.name}[{site.target.float_tile.name}]",
            schedule=schedule,
            reads=(0,),
            emit=emit,
            weights=tuple(weights),
            traffic=4 * (batch * (channels * height * width + outs * pixels) + outs * reach),
            work=2 * batch * outs * pixels * reach,
        )


def _blocks_config(
    channels: int, outs: int, groups: int, geometry: ConvGeometry, bias: bool, batch: Dim, limits: BlockLimits
) -> blocks.ConvBlocks:
    images = batch if isinstance(batch, int) else 1
    wide = is_wide(limits, groups, outs // groups, images * geometry.out[0] * geometry.out[1])
    return blocks.ConvBlocks(channels, outs, groups, geometry, bias, wide)


def _packed(param: Param, config: kernels.Conv2d) -> Packed:
    def make() -> torch.Tensor:
        return kernels.pack_weight(config, param.value().to(torch.float32))

    elements = math.prod(param.type.concrete({}))
    return Packed(f"{param.name}:filters{config.rows}", torch.float32, (elements,), make)
