"""Dense linear layers: float32 activations, weights of float32, float16 or bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels.blocks import linear_dense as blocks
from planish.codegen.kernels.linear_dense import LinearDense, configurations, linear_dense, pack_weight
from planish.codegen.stored import as_float32, dense
from planish.codegen.tiles.float import STORAGE_DTYPES
from planish.ir import Dense, Node, Param


@emitted_once
def _prim_func(config: LinearDense) -> Any:
    return linear_dense(config)


@emitted_once
def _in_blocks(config: blocks.LinearBlocks) -> Any:
    return blocks.linear_dense(config)


class LinearFamily(Family):
    """y = x W^T + b with the weight packed into column panels, or plainly where blocks of threads read it."""

    name: ClassVar[str] = "linear_dense"
    ops: ClassVar[frozenset[str]] = frozenset({"linear"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x, weight, bias = node.inputs
        assert x is not None
        param, added = site.param(weight), site.param(bias)
        if x.type.dtype != torch.float32:
            return f"activations of {x.type.dtype} have no dense linear kernel"
        if param is None or (bias is not None and added is None):
            return "the weight or the bias is computed at run time"
        # A weight of another encoding is decoded when the artifact is written: correct, though not small.
        stored = param.encoding.dtype if isinstance(param.encoding, Dense) else torch.float32
        dtype = str(stored).removeprefix("torch.")
        if dtype not in STORAGE_DTYPES:
            return f"a weight stored as {dtype} has no dense linear kernel"
        outs, ins = param.type.concrete({})
        rows = product(x.type.shape[:-1])
        limits = site.target.blocks
        function: Callable[[], Any]
        if limits is None:
            config = configurations(site.target.float_tile, ins, outs, dtype, bias is not None)[0]
            weights, function = [_packed(param, config)], partial(_prim_func, config)
            tiles = f"{config.rows} x {config.panel_width}, depth in blocks of {config.depth_block}"
            schedule = f"register tiles of {tiles}"
        else:
            known = rows if isinstance(rows, int) else None
            in_blocks = blocks.LinearBlocks(ins, outs, stored, bias is not None, known, limits.multiprocessors)
            weights = [dense(param) if isinstance(param.encoding, Dense) else as_float32(param)]
            function, schedule = partial(_in_blocks, in_blocks), blocks.SCHEDULE
        if added is not None:
            weights.append(as_float32(added))

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [to.view(operands[0], [rows, ins]), *(to.weight(w) for w in weights)]
            (y,) = to.call(function(), inputs, [([rows, outs], "float32")])
            return [to.view(y, node.output.type.shape)]

        decoded = "" if isinstance(param.encoding, Dense) else f", decoded from {param.encoding}"
        return Kernel(
            name=f"{self.name}[{dtype}, {site.target.float_tile.name}{decoded}]",
            schedule=schedule,
            reads=(0,),
            emit=emit,
            weights=tuple(weights),
            traffic=outs * ins * stored.itemsize + 4 * rows * (ins + outs),
            work=2 * rows * ins * outs,
        )


def _packed(param: Param, config: LinearDense) -> Packed:
    shape = (config.panels, config.in_features, config.panel_width)
    stored = torch.uint16 if config.weight_dtype == "bfloat16" else getattr(torch, config.weight_dtype)

    def make() -> torch.Tensor:
        if isinstance(param.encoding, Dense):
            return pack_weight(config, param.storage()["values"])
        return pack_weight(config, param.value().to(torch.float32))

    return Packed(f"{param.name}:panels{config.panel_width}", stored, shape, make)
