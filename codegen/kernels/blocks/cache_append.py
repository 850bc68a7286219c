"""The append to a cache in few bits, a row to a block of threads: the codes, scales and zeros of `kernels/cache_codes.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.rows import RowBlock, threads_for
from planish.codegen.kernels.cache_codes import Rounding, magnitude
from planish.codegen.kernels.kv_cache import Appended, CacheLayout, appending, write_tail
from planish.codegen.simt.block import Block
from planish.codegen.tiles.float import Expr


def cache_append(layout: CacheLayout) -> Any:
    """The PrimFunc of `kernels.kv_cache.cache_append` for a layout with codes: the same arguments, the same results."""
    return appending(layout, partial(_write, layout))


def _write(layout: CacheLayout, rows: Appended) -> None:
    def body(block: Block) -> None:
        token, head, b = block.index
        emit.branch(token < rows.length(b), lambda: _RowBlock(block, layout, rows, b, token, head).run())

    threads = threads_for(layout.size)
    shared = RowBlock.shared_bytes(threads, ("int32", "float32"))
    emit.launch((rows.tokens, layout.heads, rows.batch), threads, body, shared)


class _RowBlock:
    def __init__(self, block: Block, layout: CacheLayout, rows: Appended, b: Expr, token: Expr, head: Expr) -> None:
        assert layout.codes is not None
        self.block, self.layout, self.codes, self.rows = block, layout, layout.codes, rows
        self.b, self.token, self.head = b, token, head
        self.along = RowBlock(block, layout.size)

    def run(self) -> None:
        """Emit the row."""
        largest = self.along.fold("largest", T.int32(0), T.max, lambda e: magnitude(self._element(e)))
        found = self._ends() if self.codes.zero_points else [] if self.codes.format == "fp8" else [self._first(largest)]
        with self.block.phase() as thread:
            rounding = Rounding(self.codes)
            if self.codes.format == "fp8":
                rounding.floats(largest[0])
            elif self.codes.zero_points:
                low, high = found
                rounding.from_zero(low[0], high[0], largest[0])
            else:
                rounding.centred(math.hold(self._element(T.cast(found[0][0], "int64"))), largest[0])
            place = emit.bind("place", self.rows.start(self.b) + self.token)

            def write(number: Expr) -> None:
                low = number * self.codes.per_byte
                parts = [self._number(rounding, low + n) for n in range(self.codes.per_byte)]
                byte = rounding.byte(parts[0], parts[-1])
                T.buffer_store(self.rows.cache, byte, self.layout.codes_at(self.b, self.head, place, number))

            RowBlock(self.block, self.layout.row_codes).each(thread, write)
            tail = rounding.tail()
            emit.branch(thread < 1, lambda: write_tail(self.layout, self.rows.cache, self.b, self.head, place, tail))

    def _element(self, e: Expr) -> Expr:
        return self.rows.new[self.b, self.token, self.head, e]

    def _number(self, rounding: Rounding, e: Expr) -> Expr:
        """The number of an element, 0 past the row."""
        size = self.layout.size
        if self.layout.row_codes * self.codes.per_byte == size:
            return math.hold(rounding.number(math.hold(self._element(e))))
        number = rounding.number(math.hold(self._element(T.min(e, emit.index(size - 1)))))
        return math.hold(T.Select(e < size, number, T.int32(0)))

    def _first(self, largest: Any) -> Any:
        """The number of the first element of largest magnitude."""

        def candidate(e: Expr) -> Expr:
            same = T.EQ(magnitude(self._element(e)), largest[0])
            return T.Select(same, T.cast(e, "int32"), T.int32(self.layout.size - 1))

        return self.along.fold("first", T.int32(self.layout.size - 1), T.min, candidate)

    def _ends(self) -> list[Any]:
        """The smallest and the largest of the elements and zero."""
        return [
            self.along.fold(name, T.float32(0), fold, self._element) for name, fold in (("low", T.min), ("high", T.max))
        ]
