"""How keys and values lie in memory for attention, and how new ones are put there.

Values lie one head after another, ``(B, heads, capacity, padded size)``, a row padded to whole vectors: the products with
the weights read whole rows. Keys lie in *panels* of as many keys as a vector has lanes, each turned on its side,
``(B, heads, panels, size, lanes)``: the scores of one query against a panel are a chain of fused multiply-adds of one
query element with one vector, without a sum across lanes and without packing before a product of many queries.
A key is written once and read at every later token, so the turning costs next to nothing. A cache that is read as both
lies as values do.

Padding is never read into a result and may hold anything.

In few bits (`cache_codes`) both are bytes, ``(B, heads, panels, bytes)`` and ``(B, heads, capacity, bytes)``: the codes of
a panel or of a row as above, two keys' elements or two vectors of a row's elements to a byte where they take half of one,
and behind them the scales and zeros, so that what is read together lies together.

Threads of a GPU, whose vectors have one lane, read words of several codes, neighbours those that follow. For them keys and
values lie in panels of ROWS rows, one row of codes after another, each filled up to whole words, then their scales,
then their zeros: everything is aligned, and what a block reads is one stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.cache_codes import Codes, EncodedRow
from planish.codegen.kernels.vectors import for_rows, padded, storage
from planish.codegen.pointwise.dtypes import stored
from planish.codegen.pointwise.loops import unravel
from planish.codegen.tiles.float import Expr, FloatTile

KINDS = ("keys", "values")
ROWS = 16
"""Rows in a panel of codes that threads read."""
WORD = 4
"""Bytes of which threads read one or more at once."""


@dataclass(frozen=True)
class CacheLayout:
    """Where the elements of a cache lie.

    Attributes:
        kind: "keys" or "values".
        heads, size: of the logical cache (B, capacity, heads, size).
        dtype: float32, float16 or bfloat16; new elements are rounded to it, to nearest even.
        lanes: of the vectors that read the cache.
        codes: how rows are held in few bits; the dtype is float32 then.
    """

    kind: str
    heads: int
    size: int
    dtype: str
    lanes: int
    codes: Codes | None = None

    def __post_init__(self) -> None:
        storage(self.dtype, "caches")
        if self.kind not in KINDS:
            raise ValueError(f"a cache holds keys or values, not {self.kind!r}")
        if self.codes is not None and self.dtype != "float32":
            raise ValueError(f"codes stand for float32, not for {self.dtype}")

    @property
    def in_words(self) -> bool:
        """Whether codes lie as threads read them."""
        return self.codes is not None and self.lanes == 1

    @property
    def together(self) -> int:
        """Rows that one step of the third axis holds: the keys of a panel, or one value."""
        return self.lanes if self.kind == "keys" else 1

    @property
    def row_codes(self) -> int:
        """Bytes of the codes of one row, where there are codes."""
        assert self.codes is not None
        per_byte = self.codes.per_byte
        if self.in_words:
            return padded(self.size, per_byte * WORD) // per_byte
        if self.kind == "keys":
            return -(-self.size // per_byte)
        return padded(self.size, per_byte * self.lanes) // per_byte

    @property
    def row(self) -> tuple[int, ...]:
        """The shape in memory of what lies together."""
        if self.codes is not None:
            return ((self.row_codes + self.codes.tail_bytes) * self.together,)
        return (self.size, self.lanes) if self.kind == "keys" else (padded(self.size, self.lanes),)

    @property
    def row_bytes(self) -> int:
        """Bytes of one key or value, padding left out."""
        if self.codes is not None:
            return -(-self.size // self.codes.per_byte) + self.codes.tail_bytes
        return self.size * np.dtype(self.stored).itemsize

    @property
    def stored(self) -> str:
        """The dtype of the elements in memory."""
        return "uint8" if self.codes is not None else storage(self.dtype, "caches")

    def shape(self, batch: Any, capacity: Any) -> tuple[Any, ...]:
        """The shape in memory for a batch and a capacity, which may be integers or expressions."""
        return batch, self.heads, (capacity + (self.together - 1)) // self.together, *self.row

    def argument(self, name: str, batch: Expr, extent: Expr) -> Expr:
        """The next argument of a PrimFunc: a cache of ``extent`` times what lies together."""
        return emit.argument(name, (batch, self.heads, extent, *self.row), self.stored)

    def places(self, extent: Expr) -> Expr:
        """Tokens that a cache of that extent can hold."""
        return extent * self.together

    def check(self, extent: Expr) -> None:
        """Emit that a cache of that extent consists of whole panels, where it has codes for threads."""
        if self.in_words:
            with T.Assert(tirx.EQ(extent % ROWS, emit.index(0)), f"caches of codes have a multiple of {ROWS} places"):
                pass

    def at(self, b: Expr, head: Expr, place: Expr, element: Expr) -> list[Expr]:
        """The indices of one element, where there are no codes."""
        if self.kind == "keys":
            return [b, head, place // self.lanes, element, place % self.lanes]
        return [b, head, place, element]

    def vector(self, b: Expr, head: Expr, at: Expr, element: Expr) -> list[Expr]:
        """The indices from which a vector is read: element `element` of the keys of panel `at`, or of the value at place
        `at` the elements from `element` on, a multiple of the lanes."""
        if self.codes is None:
            return [b, head, at, element, emit.index(0)] if self.kind == "keys" else [b, head, at, element]
        if self.kind == "keys":
            return [b, head, at, element // self.codes.per_byte * self.lanes]
        return [b, head, at, element // self.lanes // self.codes.per_byte * self.lanes]

    def read(self, tile: FloatTile, cache: Expr, b: Expr, head: Expr, at: Expr, element: Expr) -> Expr:
        """The float32 vector at `vector(...)`: what is held, or its numbers where there are codes."""
        held = emit.load(cache, self.vector(b, head, at, element), self.lanes)
        if self.codes is None:
            return tile.widen(held, self.dtype)
        number = element if self.kind == "keys" else element // self.lanes
        return self.codes.numbers(tile, held, number % self.codes.per_byte)

    def codes_at(self, b: Expr, head: Expr, place: Expr, number: Expr) -> list[Expr]:
        """The indices of byte `number` of the codes of one row."""
        if self.in_words:
            return self._in_panel(b, head, place, place % ROWS * self.row_codes + number)
        if self.kind == "keys":
            return [b, head, place // self.lanes, number * self.lanes + place % self.lanes]
        return [b, head, place, number]

    def scale_at(self, b: Expr, head: Expr, place: Expr) -> list[Expr]:
        """The indices of the first byte of the scale of one row."""
        assert self.codes is not None
        if self.in_words:
            return self._in_panel(b, head, place, place % ROWS * self.codes.scale_bytes + ROWS * self.row_codes)
        first = self.row_codes * self.together + place % self.together * self.codes.scale_bytes
        return [b, head, place // self.together, first]

    def zero_at(self, b: Expr, head: Expr, place: Expr) -> list[Expr]:
        """The indices of the byte of the zero of one row."""
        assert self.codes is not None
        if self.in_words:
            return self._in_panel(b, head, place, place % ROWS + ROWS * (self.row_codes + self.codes.scale_bytes))
        first = (self.row_codes + self.codes.scale_bytes) * self.together + place % self.together
        return [b, head, place // self.together, first]

    def _in_panel(self, b: Expr, head: Expr, place: Expr, offset: Expr) -> list[Expr]:
        """The indices of a byte of the panel of ROWS rows that a place belongs to."""
        (width,) = self.row
        return [b, head, place // ROWS * ROWS + offset // width, offset % width]


@dataclass(frozen=True)
class Appended:
    """Rows on their way into a cache: new[b, i] belongs at place start(b) + i if i < length(b)."""

    cache: Expr
    new: Expr
    batch: Expr
    tokens: Expr
    start: Callable[[Expr], Expr]
    length: Callable[[Expr], Expr]


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
    return appending(layout, partial(_write, layout))


def appending(layout: CacheLayout, write: Callable[[Appended], None]) -> Any:
    """The PrimFunc of `cache_append` around what writes the rows."""

    def body() -> None:
        batch, tokens, extent = emit.symbol("batch"), emit.symbol("tokens"), emit.symbol("extent")
        cache = layout.argument("cache", batch, extent)
        new = emit.argument("new", (batch, tokens, layout.heads, layout.size), "float32")
        start = emit.argument("start", (batch,), "int64")
        length = emit.argument("length", (batch,), "int64")
        layout.check(extent)

        def inside(b: Expr) -> Expr:
            return T.And(start[b] >= 0, start[b] + T.min(length[b], tokens) <= layout.places(extent))

        current().check(batch, inside, "cache_append: tokens outside the cache")
        write(Appended(cache, new, batch, tokens, lambda b: start[b], lambda b: length[b]))

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
        _write(layout, Appended(cache, new, batch, tokens, lambda b: emit.index(0), lambda b: tokens))

    return emit.prim_func("cache_pack", body)


def _write(layout: CacheLayout, rows: Appended) -> None:
    cache, new, batch, tokens = rows.cache, rows.new, rows.batch, rows.tokens
    start, length = rows.start, rows.length
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
            if layout.codes is not None:
                _write_codes(layout, layout.codes, cache, b, head, place, lambda e: new[b, token, head, e])
                return
            with emit.loop("element", layout.size) as element:
                value = stored(new[b, token, head, element], dtype)
                T.buffer_store(cache, value, layout.at(b, head, place, element))

    for_rows(batch * layout.heads, tokens * layout.size, at_head)


def _write_codes(
    layout: CacheLayout, codes: Codes, cache: Expr, b: Expr, head: Expr, place: Expr, element: Callable[[Expr], Expr]
) -> None:
    """Emit one row in few bits."""
    lanes, keys = layout.lanes, layout.kind == "keys"
    row = EncodedRow(codes, layout.size, layout.row_codes * codes.per_byte, element)
    row.encode()
    with emit.loop("byte", layout.row_codes) as number:
        # Keys pair neighbours; values pair an element with the one a vector further.
        low = number * codes.per_byte if keys else number // lanes * lanes * codes.per_byte + number % lanes
        byte = row.byte(low, low + (1 if keys else lanes))
        T.buffer_store(cache, byte, layout.codes_at(b, head, place, number))
    write_tail(layout, cache, b, head, place, row.rounding.tail())


def write_tail(layout: CacheLayout, cache: Expr, b: Expr, head: Expr, place: Expr, tail: Sequence[Expr]) -> None:
    """Emit the stores of the bytes of one row's scale and, where there is one, zero."""
    assert layout.codes is not None
    scale = layout.scale_at(b, head, place)
    for number, byte in enumerate(tail[: layout.codes.scale_bytes]):
        T.buffer_store(cache, byte, [*scale[:-1], scale[-1] + number])
    for byte in tail[layout.codes.scale_bytes :]:
        T.buffer_store(cache, byte, layout.zero_at(b, head, place))
