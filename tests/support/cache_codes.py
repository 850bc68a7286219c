"""Caches in few bits as plain tensors: what lies in their bytes, by the documented layout, and rows they hold exactly."""

from __future__ import annotations

import torch

from planish.codegen.kernels.cache_codes import Codes
from planish.codegen.kernels.kv_cache import CacheLayout
from planish.ir import Encoding, Float8, GroupedInt


def encoding_of(codes: Codes, size: int) -> Encoding:
    """The encoding whose codes a cache of rows of `size` elements holds."""
    if codes.format == "fp8":
        return Float8()
    return GroupedInt({"int8": 8, "int4": 4}[codes.format], size, getattr(torch, codes.scale_dtype), codes.zero_points)


def read_cache(layout: CacheLayout, cache: torch.Tensor, capacity: int) -> torch.Tensor:
    """The logical cache [batch, capacity, heads, size], float64."""
    codes, lanes = layout.codes, layout.lanes
    assert codes is not None
    together = lanes if layout.kind == "keys" else 1
    ends = [layout.row_codes * together, (layout.row_codes + codes.scale_bytes) * together]
    held, scales, zeros = torch.tensor_split(cache, ends, dim=-1)
    if layout.kind == "keys":
        held = held.unflatten(-1, (-1, lanes)).transpose(-1, -2).flatten(2, 3)
        scales, zeros = (p.unflatten(-1, (lanes, -1)).flatten(2, 3) for p in (scales, zeros))
    held, scales, zeros = (p.clone(memory_format=torch.contiguous_format) for p in (held, scales, zeros))
    numbers = held.view(torch.float8_e4m3fn if codes.format == "fp8" else torch.int8).double()
    if codes.format == "int4":
        bytes_ = held.to(torch.int64)
        low, high = ((half + 8) % 16 - 8 for half in (bytes_ & 15, bytes_ >> 4))
        if layout.kind == "keys":
            numbers = torch.stack([low, high], -1).flatten(-2).double()
        else:
            pairs = [half.unflatten(-1, (-1, lanes)) for half in (low, high)]
            numbers = torch.stack(pairs, -2).flatten(-3).double()
    if codes.zero_points:
        numbers = numbers - zeros.view(torch.int8).double()
    decoded = numbers * scales.view(getattr(torch, codes.scale_dtype)).double()
    return decoded[:, :, :capacity, : layout.size].transpose(1, 2).contiguous()


def exact_rows(codes: Codes, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Rows along the last axis that a cache holds exactly, each under a scale that is some power of two."""
    scale = torch.exp2(torch.randint(-6, 3, (*shape[:-1], 1), generator=generator).double())
    sign = 1.0 - 2.0 * torch.randint(0, 2, scale.shape, generator=generator).double()
    if codes.format == "fp8":
        numbers = torch.randint(0, 0x7F, shape, generator=generator).to(torch.uint8).view(torch.float8_e4m3fn).double()
        numbers = numbers * (1.0 - 2.0 * torch.randint(0, 2, shape, generator=generator).double())
        numbers[..., 0] = 448.0
    elif codes.zero_points:
        steps = 2 * codes.largest - 1
        numbers = torch.randint(0, steps + 1, shape, generator=generator).double()
        numbers[..., 0], numbers[..., -1] = 0, steps
        numbers -= torch.randint(0, steps + 1, scale.shape, generator=generator)
        sign = torch.ones_like(sign)
    else:
        numbers = torch.randint(-codes.largest, codes.largest, shape, generator=generator).double()
        numbers[..., 0] = -codes.largest
    return (numbers * sign * scale).float()
