"""Caches in few bits as plain tensors: what lies in their bytes, by the documented layout, and rows they hold exactly."""

from __future__ import annotations

import torch

from planish.codegen.kernels.cache_codes import Codes
from planish.codegen.kernels.kv_cache import ROWS, CacheLayout
from planish.ir import Encoding, Float8, GroupedInt


def encoding_of(codes: Codes, size: int) -> Encoding:
    """The encoding whose codes a cache of rows of `size` elements holds."""
    if codes.format == "fp8":
        return Float8()
    return GroupedInt({"int8": 8, "int4": 4}[codes.format], size, getattr(torch, codes.scale_dtype), codes.zero_points)


def read_parts(layout: CacheLayout, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers (float64), scales and zeros (int8; none where there are none) that lie in a cache, [batch, heads, places, ...],
    in the order of their elements."""
    codes, lanes, together = layout.codes, layout.lanes, layout.together
    assert codes is not None
    if layout.in_words:
        together = ROWS
        cache = cache.unflatten(2, (-1, ROWS)).flatten(3)
    ends = [layout.row_codes * together, (layout.row_codes + codes.scale_bytes) * together]
    held, scales, zeros = torch.tensor_split(cache, ends, dim=-1)
    if layout.in_words:
        held = held.unflatten(-1, (together, -1)).flatten(2, 3)
    elif layout.kind == "keys":
        held = held.unflatten(-1, (-1, lanes)).transpose(-1, -2).flatten(2, 3)
    scales, zeros = (p.unflatten(-1, (together, -1)).flatten(2, 3) for p in (scales, zeros))
    held, scales, zeros = (p.clone(memory_format=torch.contiguous_format) for p in (held, scales, zeros))
    numbers = held.view(torch.float8_e4m3fn if codes.format == "fp8" else torch.int8).double()
    if codes.format == "int4":
        bytes_ = held.to(torch.int64)
        low, high = ((half + 8) % 16 - 8 for half in (bytes_ & 15, bytes_ >> 4))
        if layout.kind == "keys" or layout.in_words:
            numbers = torch.stack([low, high], -1).flatten(-2).double()
        else:
            pairs = [half.unflatten(-1, (-1, lanes)) for half in (low, high)]
            numbers = torch.stack(pairs, -2).flatten(-3).double()
    return numbers[..., : layout.size], scales.view(getattr(torch, codes.scale_dtype)), zeros.view(torch.int8)


def read_cache(layout: CacheLayout, cache: torch.Tensor, capacity: int) -> torch.Tensor:
    """The logical cache [batch, capacity, heads, size], float64."""
    numbers, scales, zeros = read_parts(layout, cache)
    if zeros.numel():
        numbers = numbers - zeros.double()
    return (numbers * scales.double())[:, :, :capacity].transpose(1, 2).contiguous()


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
