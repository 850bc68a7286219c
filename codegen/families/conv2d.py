"""Two-dimensional convolutions on float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels import conv2d as kernels
from planish.codegen.kernels.conv2d_geometry import ConvGeometry
from planish.codegen.stored import as_float32
from planish.ir import Node, Param
from planish.ir.ops import Conv2d


@emitted_once
def _prim_func(config: kernels.Conv2d) -> Any:
    return kernels.conv2d(config)


class Conv2dFamily(Family):
    """Direct convolution: register tiles of channels by pixels, weights packed by tile."""

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
        try:
            geometry = ConvGeometry((height, width), (kernel[0], kernel[1]), op.stride, op.padding, op.dilation)
            tile = site.target.float_tile
            config = kernels.configurations(tile, channels, outs, op.groups, geometry, bias is not None)[0]
        except ValueError as error:
            return str(error)
        weights = [_packed(param, config)]
        if added is not None:
            weights.append(as_float32(added))

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [operands[0], *(to.weight(w) for w in weights)]
            return to.call(_prim_func(config), inputs, [(node.output.type.shape, "float32")])

        pixels = geometry.out[0] * geometry.out[1]
        reach = (channels // op.groups) * kernel[0] * kernel[1]
        return Kernel(
            name=f"{self.name}[{config.tile.name}]",
            schedule=f"register tiles of {config.rows} channels x {config.panel_width} pixels",
            reads=(0,),
            emit=emit,
            weights=tuple(weights),
            traffic=4 * (batch * (channels * height * width + outs * pixels) + outs * reach),
            work=2 * batch * outs * pixels * reach,
        )


def _packed(param: Param, config: kernels.Conv2d) -> Packed:
    def make() -> torch.Tensor:
        return kernels.pack_weight(config, param.value().to(torch.float32))

    elements = math.prod(param.type.concrete({}))
    return Packed(f"{param.name}:filters{config.rows}", torch.float32, (elements,), make)
