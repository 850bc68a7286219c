"""How keys and values lie in memory for attention, and how new ones are put there.

Values lie one head after another, ``(B, heads, capacity, padded size)``, a row padded to whole vectors: the products with
the weights read whole rows. Keys lie in *panels* of as many keys as a vector has lanes, each turned on its side,
``(B, heads, panels, size, lanes)``: the scores of one query against a panel are a chain of fused multiply-adds of one
query element with one vector, without a sum across lanes and without packing before a product of many queries.
A key is written once and read at every later token, so the turning costs next to nothing. A cache that is read as both
lies as values do.

Padding is never read into a result and may hold anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.vectors import for_rows, padded, storage
from planish.codegen.pointwise.dtypes import stored
from planish.codegen.pointwise.loops import unravel
from planish.codegen.tiles.float import Expr

KINDS = ("keys", "values")


@dataclass(frozen=True)
class CacheLayout:
    """Where the elements of a cache lie.

    Attributes:
        kind: "keys" or "values".
        heads, size: of the logical cache (B, capacity, heads, size).
        dtype: float32, float16 or bfloat16; new elements are rounded to it, to nearest even.
        lanes: of the vectors that read the cache.
    """

    kind: str
    heads: int
    size: int
    dtype: str
    lanes: int

    def __post_init__(self) -> None:
        storage(self.dtype, "caches")
        if self.kind not in KINDS:
            raise ValueError(f"a cache holds keys or values, not {self.kind!r}")

    def shape(self, batch: Any, capacity: Any) -> tuple[Any, ...]:
        """The shape in memory for a batch and a capacity, which may be integers or expressions."""
        if self.kind == "keys":
            return batch, self.heads, (capacity + self.lanes - 1) // self.lanes, self.size, self.lanes
        return batch, self.heads, capacity, padded(self.size, self.lanes)

    def argument(self, name: str, batch: Expr, extent: Expr) -> Expr:
        """The next argument of a PrimFunc: a cache of ``extent`` panels of keys, or places for values."""
        kept = storage(self.dtype, "caches")
        if self.kind == "keys":
            return emit.argument(name, (batch, self.heads, extent, self.size, self.lanes), kept)
        return emit.argument(name, (batch, self.heads, extent, padded(self.size, self.lanes)), kept)

    def places(self, extent: Expr) -> Expr:
        """Tokens that a cache of that extent can hold."""
        return extent * self.lanes if self.kind == "keys" else extent

    def at(self, b: Expr, head: Expr, place: Expr, element: Expr) -> list[Expr]:
        """The indices of one element."""
        if self.kind == "keys":
            return [b, head, place // self.lanes, element, place % self.lanes]
        return [b, head, place, element]


def pack_cache(layout: CacheLayout, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` (B, tokens, heads, size) as a cache of exactly that capacity, padding zero; bfloat16 as its bits.

    What the kernel of cache_pack computes, in torch.
    """
    tensor = tensor.to(getattr(torch, layout.dtype)).transpose(1, 2)
    batch, heads, tokens, size = tensor.shape
    if layout.kind == "keys":
        panels = -(-tokens // layout.lanes)
        cache = tensor.new_zeros(batch, heads, panels * layout.lanes, size)
        cache[:, :, :tokens] = tensor
        cache = cache.unflatten(2, (panels, layout.lanes)).transpose(3, 4)
    else:
        cache = tensor.new_zeros(batch, heads, tokens, padded(size, layout.lanes))
        cache[..., :size] = tensor
    cache = cache.contiguous()
    return cache.view(torch.uint16) if cache.dtype == torch.bfloat16 else cache


def cache_append(layout: CacheLayout) -> Any:
    """The PrimFunc ``(cache, new (B, S, heads, size) float32, start int64 (B,), length int64 (B,))``, in place.

    Writes new[b, i] at place start[b] + i for every i < length[b] and nothing else; i beyond S does not exist. A call
    that would write outside the cache raises RuntimeError and writes nothing.
    """

    def body() -> None:
        batch, tokens, extent = emit.symbol("batch"), emit.symbol("tokens"), emit.symbol("extent")
        cache = layout.argument("cache", batch, extent)
        new = emit.argument("new", (batch, tokens, layout.heads, layout.size), "float32")
        start = emit.argument("start", (batch,), "int64")
        length = emit.argument("length", (batch,), "int64")

        def inside(b: Expr) -> Expr:
            return T.And(start[b] >= 0, start[b] + T.min(length[b], tokens) <= layout.places(extent))

        current().check(batch, inside, "cache_append: tokens outside the cache")
        _write(layout, cache, new, batch, tokens, lambda b: start[b], lambda b: length[b])

    return emit.prim_func("cache_append", body)


def cache_pack(layout: CacheLayout) -> Any:
    """The PrimFunc ``(new (B, S, heads, size) float32, cache)``: all tokens from place 0 on, into a cache of capacity S.

    For attention over keys and values that no cache keeps.
    """

    def body() -> None:
        batch, tokens = emit.symbol("batch"), emit.symbol("tokens")
        new = emit.argument("new", (batch, tokens, layout.heads, layout.size), "float32")
        extent = emit.ceil_div(tokens, layout.lanes) if layout.kind == "keys" else tokens
        cache = layout.argument("cache", batch, extent)
        _write(layout, cache, new, batch, tokens, lambda b: emit.index(0), lambda b: tokens)

    return emit.prim_func("cache_pack", body)


def _write(layout: CacheLayout, cache: Expr, new: Expr, batch: Expr, tokens: Expr, start: Any, length: Any) -> None:
    dtype = getattr(torch, layout.dtype)
    if current().fine_grained:
        elements = batch * tokens * layout.heads * layout.size
        with emit.tasks("element", elements) as number:
            b, token, head, element = unravel(number, [batch, tokens, layout.heads, layout.size])

            def write() -> None:
                value = stored(new[b, token, head, element], dtype)
                T.buffer_store(cache, value, layout.at(b, head, start(b) + token, element))

            emit.branch(token < length(b), write)
        return

    def at_head(row: Expr) -> None:
        b, head = row // layout.heads, row % layout.heads
        first, count = emit.bind("first", start(b)), emit.bind("count", T.min(length(b), tokens))
        with emit.loop("token", T.max(count, emit.index(0))) as token:
            place = emit.bind("place", first + token)
            with emit.loop("element", layout.size) as element:
                value = stored(new[b, token, head, element], dtype)
                T.buffer_store(cache, value, layout.at(b, head, place, element))

    for_rows(batch * layout.heads, tokens * layout.size, at_head)
