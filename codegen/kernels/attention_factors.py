"""Scales and zeros of the keys or of the values of one block, where these are held in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.kv_cache import CacheLayout
from planish.codegen.tiles.float import Expr, FloatTile

if TYPE_CHECKING:
    from planish.codegen.kernels.attention_task import AttentionTask


class RowFactors:
    """Of each row of a block: ``scales``, what its numbers are multiplied with, and its zero, where it has one, as float32.

    Those of places past the last key are not filled in; whatever is made of them is masked or not read.
    """

    def __init__(self, layout: CacheLayout, cache: Expr, block: int) -> None:
        assert layout.codes is not None
        self._layout, self._cache, self._block, self._codes = layout, cache, block, layout.codes
        self.scales = emit.scratch("scales", block)
        self._zeros = emit.scratch("zeros", block) if layout.codes.zero_points else None

    @staticmethod
    def of(layout: CacheLayout, cache: Expr, block: int) -> RowFactors | None:
        """The factors of a cache; None when it has none."""
        return None if layout.codes is None else RowFactors(layout, cache, block)

    def fill(self, task: AttentionTask, base: Expr) -> None:
        """Emit the factors of the block from place `base` on. A padded row has scale zero, since its own may be NaN."""
        with emit.loop("key", T.min(task.keys - base, emit.index(self._block))) as key:
            place = base + key
            held = emit.load(self._cache, self._layout.scale_at(task.b, task.head, place), self._codes.scale_bytes)
            scale = self._codes.factor(held)
            if task.seen is not None:
                scale = tirx.Select(task.seen[key] != 0, scale, T.float32(0))
            T.buffer_store(self.scales, scale, [key])
            if self._zeros is not None:
                zero = self._cache[tuple(self._layout.zero_at(task.b, task.head, place))]
                T.buffer_store(self._zeros, T.cast(T.reinterpret("int8", zero), "float32"), [key])

    def from_zero(self, numbers: Expr, key: Expr, tile: FloatTile) -> Expr:
        """Numbers of one row of the block, counted from its zero."""
        return numbers if self._zeros is None else numbers - tile.broadcast(self._zeros[key])

    def panel_from_zero(self, numbers: Expr, first: Expr, lanes: int) -> Expr:
        """Numbers of as many rows as there are lanes, from row `first` of the block on, each counted from its zero."""
        return numbers if self._zeros is None else numbers - emit.load(self._zeros, [first], lanes)
