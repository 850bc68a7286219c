"""From words of packed codes to vectors of float32 levels, in registers.

Where a tile looks numbers up in a table as large as a code has values, that is all; what the table's index has above a code
is covered by repeating the table. Otherwise codes become integers and these become floats. Every level is exact.
"""

from __future__ import annotations

from typing import NamedTuple

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels.linear_decoded_packing import DecodedLayout
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr, FloatTile
from planish.codegen.tiles.small_floats import e2m1_magnitude, e4m3, e8m0
from planish.ir import Grouped, MxFp4
from planish.ir.encodings.float_blocks import MAGNITUDES

WORD = 32
"""Bits of a lane."""


class Part(NamedTuple):
    """Bits of a code: ``width`` of them from bit ``at`` of a vector of uint32 on, which are those from ``shift`` on."""

    word: Expr
    at: int
    width: int
    shift: int


class Levels:
    """The levels of one layout on one tile."""

    def __init__(self, layout: DecodedLayout, tile: FloatTile) -> None:
        self.layout, self.tile, self.lanes = layout, tile, tile.lanes

    def level(self, parts: list[Part]) -> Expr:
        """One element of every column."""
        layout = self.layout
        if 1 << layout.bits <= self.tile.entries:
            return self._found(layout.levels, self._above(parts))
        if not isinstance(layout.encoding, Grouped):
            return self._four_bits(parts[0])
        if layout.complement:
            return T.cast(self._signed(parts), self._of("float32"))
        code = T.cast(T.reinterpret(self._of("int32"), self._code(parts)), self._of("float32"))
        grid = layout.encoding.grid
        if (grid.first, grid.step) == (0, 1):
            return code
        first, step = (self.tile.broadcast(T.float32(number)) for number in (grid.first, grid.step))
        return self.tile.fma(code, step, first)

    def scale(self, stored: Expr) -> Expr:
        """Scales of a vector of columns from their bytes."""
        encoding = self.layout.encoding
        if isinstance(encoding, Grouped):
            name = str(encoding.scale_dtype).removeprefix("torch.")
            return self.tile.widen(T.reinterpret(self._of(STORAGE_DTYPES[name]), stored), name)
        return (e8m0 if isinstance(encoding, MxFp4) else e4m3)(stored)

    def zeros(self, stored: Expr) -> Expr:
        """Zero points of a vector of columns from their bytes."""
        return T.cast(T.cast(stored, self._of("int32")), self._of("float32"))

    def _of(self, dtype: str) -> str:
        return f"{dtype}x{self.lanes}"

    def _every(self, number: int) -> Expr:
        return T.broadcast(T.uint32(number), self.lanes)

    def _left(self, word: Expr, places: int) -> Expr:
        return T.shift_left(word, self._every(places)) if places else word

    def _right(self, word: Expr, places: int) -> Expr:
        return T.shift_right(word, self._every(places)) if places else word

    def _found(self, levels: list[float], places: Expr) -> Expr:
        repeated = [levels[place % len(levels)] for place in range(self.tile.entries)]
        table = tirx.Shuffle([T.float32(level) for level in repeated], [T.int32(n) for n in range(len(repeated))])
        return self.tile.lookup(table, T.reinterpret(self._of("int32"), places))

    def _above(self, parts: list[Part]) -> Expr:
        """A code below bits that mean nothing."""
        return self._right(parts[0].word, parts[0].at) if len(parts) == 1 else self._code(parts)

    def _code(self, parts: list[Part]) -> Expr:
        code = None
        for part in parts:
            down = part.at - part.shift
            moved = self._right(part.word, down) if down > 0 else self._left(part.word, -down)
            if part.at + part.width < WORD or part.shift:
                moved = T.bitwise_and(moved, self._every(((1 << part.width) - 1) << part.shift))
            code = moved if code is None else T.bitwise_or(code, moved)
        return code

    def _signed(self, parts: list[Part]) -> Expr:
        """A code in two's complement as int32."""
        bits = self.layout.bits
        word, at = (parts[0].word, parts[0].at) if len(parts) == 1 else (self._code(parts), 0)
        high = T.reinterpret(self._of("int32"), self._left(word, WORD - at - bits))
        return T.shift_right(high, T.broadcast(T.int32(WORD - bits), self.lanes))

    def _four_bits(self, part: Part) -> Expr:
        """A float of four bits: the magnitude, then the sign."""
        if len(MAGNITUDES) <= self.tile.entries:
            magnitude = self._found(list(MAGNITUDES), self._right(part.word, part.at))
        else:
            magnitude = e2m1_magnitude(self._right(part.word, part.at))
        sign = T.bitwise_and(self._left(part.word, WORD - part.at - part.width), self._every(1 << (WORD - 1)))
        return T.reinterpret(self._of("float32"), T.bitwise_or(T.reinterpret(self._of("uint32"), magnitude), sign))
