"""Weights of eight- and four-bit floats, which several methods store alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from planish.frontends.quantized.base import Held, QuantizedWeight
from planish.frontends.stored import StoredTensor
from planish.ir import InputError
from planish.ir.encodings import Float8, NvFp4
from planish.ir.encodings.grouped import FLOAT_SCALES

E4M3 = torch.float8_e4m3fn


def float8(weight: QuantizedWeight, outs: int, ins: int) -> Held:
    """E4M3 numbers "weight" [outs, ins] times "weight_scale": one number, or one a row."""
    values = weight.expect("weight", E4M3, (outs, ins))
    shape = weight.parts["weight_scale"].shape
    whole, rows = ((), (1,), (1, 1)), ((outs,), (outs, 1))
    if shape not in whole and shape not in rows:
        raise weight.unsupported(f"has FP8 scales {list(shape)} of blocks, not of rows or of the tensor")
    scales = weight.expect("weight_scale", FLOAT_SCALES, shape)
    by_row = shape in rows and shape not in whole
    return Float8("row" if by_row else "tensor"), lambda: {
        "values": bits(values),
        "scales": scales.read().to(torch.float32).reshape((outs,) if by_row else ()),
    }


def nvfp4(weight: QuantizedWeight, part: str, outs: int, ins: int, tensor_scale: Callable[[], torch.Tensor]) -> Held:
    """Four-bit floats, two a byte, the first in the lower half, with E4M3 scales of blocks in "weight_scale"."""
    if ins % NvFp4.block:
        raise weight.unsupported(f"has blocks of {NvFp4.block}, which do not divide its {ins} inputs")
    values = weight.expect(part, torch.uint8, (outs, ins // 2))
    scales = weight.expect("weight_scale", E4M3, (outs, ins // NvFp4.block))
    return NvFp4(), lambda: {"values": values.read(), "scales": bits(scales), "tensor_scale": tensor_scale()}


def bits(tensor: StoredTensor) -> torch.Tensor:
    """The bytes of E4M3 numbers; raises InputError when one is NaN."""
    found = tensor.read().view(torch.uint8)
    if bool(((found & 0x7F) == 0x7F).any()):
        raise InputError(f"tensor {tensor.key!r} in {tensor.path.name} holds NaN; get an intact copy of the checkpoint")
    return found
