"""Linear layers on float32 activations: weights of floats, of eight-bit floats with a scale, or of few bits in groups.

An encoded weight is stored as its codes and scales, and decoded in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels.blocks import linear_decoded as decoded_blocks
from planish.codegen.kernels.blocks import linear_dense as blocks
from planish.codegen.kernels.blocks import linear_rows
from planish.codegen.kernels.linear_decoded import linear_decoded
from planish.codegen.kernels.linear_decoded_config import LinearDecoded
from planish.codegen.kernels.linear_decoded_config import configurations as decoded_configurations
from planish.codegen.kernels.linear_decoded_config import pack_weight as pack_codes
from planish.codegen.kernels.linear_decoded_packing import require_numbers
from planish.codegen.kernels.linear_dense import STORED, LinearDense, configurations, linear_dense, pack_weight
from planish.codegen.stored import as_float32, as_stored, dense
from planish.codegen.tiles.float import E4M3, STORAGE_DTYPES
from planish.ir import Dense, Dim, Encoding, Float8, Grouped, MxFp4, Node, NvFp4, Param, TensorType


@emitted_once
def _dense(config: LinearDense) -> Any:
    return linear_dense(config)


@emitted_once
def _decoded(config: LinearDecoded) -> Any:
    return linear_decoded(config)


@emitted_once
def _dense_in_blocks(config: blocks.LinearBlocks) -> Any:
    return blocks.linear_dense(config)


@emitted_once
def _decoded_in_blocks(config: decoded_blocks.DecodedBlocks) -> Any:
    return decoded_blocks.linear_decoded(config)


@dataclass(frozen=True)
class _Variant:
    """One way to compute a layer: the PrimFunc of (x, weights..., [bias], y), what it stores, and words for the report."""

    family: str
    stored: str
    function: Callable[[], Any]
    weights: tuple[Packed, ...]
    schedule: str


class LinearFamily(Family):
    """y = x W^T + b with the weight packed into column panels, or plainly where blocks of threads read it."""

    name: ClassVar[str] = "linear_dense"
    ops: ClassVar[frozenset[str]] = frozenset({"linear"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        x, weight, bias = node.inputs
        assert x is not None
        param, added = site.param(weight), site.param(bias)
        if x.type.dtype != torch.float32:
            return f"activations of {x.type.dtype} have no linear kernel for float weights"
        if param is None or (bias is not None and added is None):
            return "the weight or the bias is computed at run time"
        outs, ins = param.type.concrete({})
        rows = product(x.type.shape[:-1])
        try:
            variant = (_of_blocks if site.target.blocks else _of_vectors)(param, bias is not None, rows, site)
        except ValueError as error:
            return str(error)
        added_weights = () if added is None else (as_float32(added),)
        weights = (*variant.weights, *added_weights)

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [to.view(operands[0], [rows, ins]), *(to.weight(w) for w in weights)]
            (y,) = to.call(variant.function(), inputs, [([rows, outs], "float32")])
            return [to.view(y, node.output.type.shape)]

        return Kernel(
            name=f"{variant.family}[{variant.stored}, {site.target.float_tile.name}]",
            schedule=variant.schedule,
            reads=(0,),
            emit=emit,
            weights=weights,
            traffic=sum(_nbytes(w) for w in weights) + 4 * rows * (ins + outs),
            work=2 * rows * ins * outs,
        )


def _nbytes(packed: Packed) -> int:
    return prod(packed.shape) * packed.dtype.itemsize


def _of_vectors(param: Param, bias: bool, rows: Dim, site: Site) -> _Variant:
    """The kernel of a processor; raises ValueError, saying why, where there is none."""
    encoding, tile, (outs, ins) = param.encoding, site.target.float_tile, param.type.concrete({})
    if isinstance(encoding, Grouped | NvFp4 | MxFp4):
        decoding = decoded_configurations(tile, ins, outs, encoding, bias)[0]
        layout = decoding.layout
        key = f"{param.name}:levels{layout.lanes}x{layout.vectors}"
        packed = Packed(key, torch.uint8, decoding.packed_shape, lambda: pack_codes(decoding, _numbers(param)))
        weights = [packed]
        if decoding.tensor_scale:
            weights.append(_tensor_scale(param))
        schedule = (
            f"decoded in registers for up to {decoding.few} rows, beyond {decoding.depth_block} deep for register "
        )
        schedule += f"tiles of {decoding.rows} x {layout.columns}"
        return _Variant("linear_decoded", str(encoding), partial(_decoded, decoding), tuple(weights), schedule)
    config = configurations(tile, ins, outs, _weight_dtype(encoding), bias)[0]
    schedule = f"register tiles of {config.rows} x {config.panel_width}, depth in blocks of {config.depth_block}"

    def panels() -> torch.Tensor:
        values = _numbers(param)["values"]
        return pack_weight(config, values.view(torch.float8_e4m3fn) if config.scaled else values)

    stored = getattr(torch, STORED[config.weight_dtype])
    packed = Packed(f"{param.name}:panels{config.panel_width}", stored, config.packed_shape, panels)
    scales = (_columns(param, outs),) if config.scaled else ()
    return _Variant("linear_dense", str(encoding), partial(_dense, config), (packed, *scales), schedule)


def _of_blocks(param: Param, bias: bool, rows: Dim, site: Site) -> _Variant:
    """The kernel in blocks of threads; raises ValueError, saying why, where there is none."""
    limits, encoding, (outs, ins) = site.target.blocks, param.encoding, param.type.concrete({})
    assert limits is not None
    known = rows if isinstance(rows, int) else None
    if isinstance(encoding, Dense):
        _weight_dtype(encoding)
        config = blocks.LinearBlocks(ins, outs, encoding.dtype, bias, known, limits.multiprocessors)
        return _Variant(
            "linear_dense", str(encoding), partial(_dense_in_blocks, config), (dense(param),), linear_rows.SCHEDULE
        )
    if not isinstance(encoding, Grouped | NvFp4 | MxFp4 | Float8):
        raise ValueError(f"a weight encoded as {encoding} has no linear kernel on float32 activations")
    decoding = decoded_blocks.DecodedBlocks(ins, outs, encoding, bias, known, limits.multiprocessors)
    weights = []
    for field, type in encoding.layout(param.type).items():
        if isinstance(encoding, Float8) and field == "scales":
            weights.append(_columns(param, outs))
        elif field == "tensor_scale":
            weights.append(_tensor_scale(param))
        else:
            weights.append(_field(param, field, type))
    function = partial(_decoded_in_blocks, decoding)
    return _Variant("linear_decoded", str(encoding), function, tuple(weights), decoded_blocks.SCHEDULE)


def _numbers(param: Param) -> Mapping[str, torch.Tensor]:
    """The storage of a weight that is free of NaN where kernels know of none."""
    require_numbers(param)
    return param.storage()


def _field(param: Param, field: str, type: TensorType) -> Packed:
    """One storage tensor of a weight, as it is."""
    return Packed(f"{param.name}:{field}", type.dtype, type.concrete({}), lambda: as_stored(_numbers(param)[field]))


def _tensor_scale(param: Param) -> Packed:
    return Packed(f"{param.name}:tensor_scale", torch.float32, (1,), lambda: param.storage()["tensor_scale"].reshape(1))


def _columns(param: Param, outs: int) -> Packed:
    """The scales of eight-bit floats, one for each output feature."""
    return Packed(
        f"{param.name}:scales", torch.float32, (outs,), lambda: param.storage()["scales"].expand(outs).contiguous()
    )


def _weight_dtype(encoding: Encoding) -> str:
    """The dtype of elements as the dense kernels name it."""
    if isinstance(encoding, Float8):
        return E4M3
    dtype = str(encoding.dtype).removeprefix("torch.") if isinstance(encoding, Dense) else ""
    if dtype not in STORAGE_DTYPES:
        raise ValueError(f"a weight encoded as {encoding} has no linear kernel on float32 activations")
    return dtype
