"""Packing and appending put every element where the layout says, rounded to the cache's dtype, and touch nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.kv_cache import KINDS, CacheLayout, cache_append, cache_pack, pack_cache
from planish.testing.float_kernels import TILES, compile_kernel, gaussian

by_kind = pytest.mark.parametrize("kind", KINDS)
by_dtype = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


@cache
def compiled(kernel: Any, layout: CacheLayout) -> Any:
    return compile_kernel(kernel(layout), TILES[0])


def unpacked(layout: CacheLayout, cache_: torch.Tensor, capacity: int) -> torch.Tensor:
    """The logical cache (B, capacity, heads, size), as its bits."""
    bits = cache_.view({2: torch.int16, 4: torch.int32}[cache_.element_size()])
    if layout.kind == "keys":
        bits = bits.transpose(3, 4).flatten(2, 3)
    return bits[:, :, :capacity, : layout.size].transpose(1, 2)


def empty(layout: CacheLayout, batch: int, capacity: int) -> torch.Tensor:
    dtype = {"float32": torch.int32}.get(layout.dtype, torch.int16)
    filled = torch.full(layout.shape(batch, capacity), 77, dtype=dtype)
    return filled.view({"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.uint16}[layout.dtype])


def rounded(layout: CacheLayout, tensor: torch.Tensor) -> torch.Tensor:
    narrow = tensor.to(getattr(torch, layout.dtype)).contiguous()
    return narrow.view(torch.int32 if layout.dtype == "float32" else torch.int16)


@by_kind
@by_dtype
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), tokens=st.integers(0, 40), spare=st.integers(0, 30), seed=st.integers(0, 2**31))
def test_append_writes_its_tokens_and_nothing_else(
    kind: str, dtype: str, batch: int, tokens: int, spare: int, seed: int
) -> None:
    layout = CacheLayout(kind, 3, 21, dtype, 16)
    tokens = tokens if batch == 1 else max(tokens, 1)
    capacity, generator = tokens + spare + 1, torch.Generator().manual_seed(seed)
    length = torch.randint(0, tokens + 1, (batch,), generator=generator)
    start = (torch.rand(batch, generator=generator) * (capacity - length + 1)).long()
    kept, new = empty(layout, batch, capacity), gaussian(batch, tokens, 3, 21, seed=seed)
    expected = unpacked(layout, kept, capacity).clone()
    for b in range(batch):
        expected[b, start[b] : start[b] + length[b]] = rounded(layout, new[b, : length[b]])
    compiled(cache_append, layout)(kept, new, start, length)
    assert torch.equal(unpacked(layout, kept, capacity), expected)


@by_kind
@by_dtype
@pytest.mark.parametrize("tokens", [1, 16, 37])
def test_pack_is_what_torch_packs(kind: str, dtype: str, tokens: int) -> None:
    layout = CacheLayout(kind, 3, 21, dtype, 8)
    new, kept = gaussian(2, tokens, 3, 21, seed=tokens), empty(layout, 2, tokens)
    compiled(cache_pack, layout)(new, kept)
    packed = pack_cache(layout, new)
    assert packed.shape == layout.shape(2, tokens)
    assert torch.equal(unpacked(layout, kept, tokens), unpacked(layout, packed, tokens))
    assert torch.equal(unpacked(layout, packed, tokens), rounded(layout, new))


@by_kind
def test_special_values_survive_rounding(kind: str) -> None:
    values = [
        0.0,
        -0.0,
        float("inf"),
        -float("inf"),
        float("nan"),
        1e-40,
        3e38,
        65519.0,
        65520.0,
        1 + 2.0**-8,
        1 + 2.0**-11,
    ]
    new = torch.tensor(values).view(1, 1, 1, -1)
    for dtype in ("float16", "bfloat16"):
        layout = CacheLayout(kind, 1, len(values), dtype, 16)
        kept = empty(layout, 1, 1)
        compiled(cache_pack, layout)(new, kept)
        got = unpacked(layout, kept, 1).contiguous().view(getattr(torch, dtype)).float()
        assert torch.equal(got.nan_to_num(), new.to(getattr(torch, dtype)).float().nan_to_num())
        assert torch.equal(got.isnan(), new.isnan())


@by_kind
@pytest.mark.parametrize(("start", "length"), [(-1, 1), (30, 3), (2**40, 1)])
def test_tokens_outside_the_cache_are_an_error(kind: str, start: int, length: int) -> None:
    layout = CacheLayout(kind, 3, 21, "float32", 16)
    kept = empty(layout, 1, 32)
    before = kept.clone()
    with pytest.raises(RuntimeError, match="tokens outside the cache"):
        compiled(cache_append, layout)(
            kept, gaussian(1, 4, 3, 21, seed=1), torch.tensor([start]), torch.tensor([length])
        )
    assert torch.equal(kept, before)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="caches of int8 are not supported"):
        CacheLayout("keys", 1, 4, "int8", 16)
    with pytest.raises(ValueError, match="a cache holds keys or values, not 'both'"):
        CacheLayout("both", 1, 4, "float32", 16)
