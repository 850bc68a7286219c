"""Caches in few bits as threads of an attention read them: some words of codes at once, which become numbers in registers.

A code stands, unsigned, in the fraction of a float between 2^23 and 2^24, or moved up by some bits; one fused multiply-add
moves it down and takes off what it counts from. All of this is exact, for a row with a zero too.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.attention_pieces import Pieces
from planish.codegen.kernels.blocks.attention_rows import QUAD, Cached, Quads, Rows, Source, Span, int64
from planish.codegen.kernels.kv_cache import ROWS, WORD, CacheLayout
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr

_FRACTION = 23
_EXPONENT = (127 + _FRACTION) << _FRACTION
"""The bits of 2^23 as a float32; an integer below 2^23 added to them is added to the number."""
_SIGNS = {"int8": 0x80808080, "int4": 0x88888888}
"""The sign bits of a word of codes: turned round, codes count from the smallest."""


class _Held:
    """The cache of one operand, of whose head `rows.head` rows are read."""

    def __init__(self, rows: Rows, name: str) -> None:
        self.tensor, self.layout, extent = _operand(rows, name)
        assert self.layout.codes is not None
        panels = extent // ROWS
        self.name, self.codes = name, self.layout.codes
        self._panels = rows.operands.batch * rows.config.kv_heads * panels
        self._first = emit.bind("first_panel", (rows.b * rows.config.kv_heads + rows.head) * panels)
        self._panel_bytes = ROWS * self.layout.row[0]

    def view(self, what: str, dtype: str, nbytes: int) -> Any:
        """The cache as elements of a dtype of `nbytes` bytes, in one dimension."""
        return emit.view(f"{self.name}_{what}", self.tensor, self._panels * (self._panel_bytes // nbytes), dtype)

    def panel(self, key: Expr) -> Expr:
        """The panel in which an int32 key lies."""
        return emit.bind("panel", self._first + int64(key // ROWS))

    def place(self, panel: Expr, offset: Expr | int, nbytes: int) -> Expr:
        """The place of what stands `offset` elements of `nbytes` bytes behind the beginning of a panel."""
        return panel * (self._panel_bytes // nbytes) + (offset if isinstance(offset, int) else int64(offset))


class CodedRows(_Held):
    """Numbers of a cache's rows, counted from the row's zero where there are zeros. Any bytes are finite numbers."""

    def __init__(self, rows: Rows, name: str, pieces: Pieces) -> None:
        super().__init__(rows, name)
        self.words = pieces.quads // self.codes.per_byte
        self._codes = self.view("codes", "uint32", WORD)
        self._zeros = self.view("zeros", "int8", 1) if self.codes.zero_points else None

    def fetch(self, key: Expr, piece: Expr, shown: Expr | None) -> Quads:
        """Within a phase: the quads of a piece of an int32 key, read now and made of its words when they are asked for."""
        panel = self.panel(key)
        of_row = self.layout.row_codes // WORD // self.words
        at = emit.bind("at", self.place(panel, key % ROWS * of_row + piece, WORD * self.words))
        kept = current().buffer((self.words,), "uint32")
        found = emit.load(self._codes, [at * self.words], self.words)
        T.buffer_store(kept, found, [0 if self.words == 1 else T.ramp(0, 1, self.words)])
        if self.codes.format == "fp8":
            return lambda quad: _floats(kept[quad])
        zero = None
        if self._zeros is not None:
            first = ROWS * (self.layout.row_codes + self.codes.scale_bytes)
            zero = math.hold(T.cast(self._zeros[self.place(panel, key % ROWS + first, 1)], "float32"))
        return self._integers([kept[n] for n in range(self.words)], zero)

    def _integers(self, held: list[Expr], zero: Expr | None) -> Quads:
        bits, signs = 8 // self.codes.per_byte, T.uint32(_SIGNS[self.codes.format])
        words = [math.hold(T.bitwise_xor(word, signs)) for word in held]
        # What a float is more than the number: by the bits that its code is moved up.
        down: dict[int, Expr] = {}
        for moved in range(0, 16, bits):
            constant = T.float32(-(2.0 ** (_FRACTION - moved) + self.codes.largest))
            down[moved] = constant if zero is None else math.hold(constant - zero)

        def number(word: Expr, code: int) -> Expr:
            # Of codes moved up no further than 16 bits the fraction has all bits.
            half, moved = divmod(code * bits, 16)
            if half:
                word = T.shift_right(word, T.uint32(16))
            mask = T.uint32(((1 << bits) - 1) << moved)
            raised = T.reinterpret("float32", T.bitwise_or(T.bitwise_and(word, mask), T.uint32(_EXPONENT)))
            return math.hold(math.fma(raised, T.float32(2.0**-moved), down[moved]))

        def quad(n: int) -> list[Expr]:
            word, first = divmod(n * QUAD, WORD * self.codes.per_byte)
            return [number(words[word], first + code) for code in range(QUAD)]

        return quad


class Scales(_Held):
    """What the numbers of each row of a cache are multiplied with."""

    def __init__(self, rows: Rows, name: str) -> None:
        super().__init__(rows, name)
        self._scales = self.view("scales", STORAGE_DTYPES[self.codes.scale_dtype], self.codes.scale_bytes)

    def factor(self, span: Span, key: Expr) -> Expr:
        """Within a phase: the factor of the nearest key; 0 where padding hides it, whose own may be NaN."""
        key = math.hold(span.nearest(key))
        shown = span.rows.shown(key)
        nbytes = self.codes.scale_bytes
        at = emit.bind("at", self.place(self.panel(key), key % ROWS + ROWS * self.layout.row_codes // nbytes, nbytes))
        factor = self.codes.factor_of(self._scales[at])
        return math.hold(factor if shown is None else tirx.Select(shown, factor, T.float32(0)))


def source(rows: Rows, name: str, pieces: Pieces) -> Source:
    """The "keys" or the "values", to be read in pieces."""
    tensor, layout, extent = _operand(rows, name)
    if layout.codes is not None:
        return CodedRows(rows, name, pieces)
    size = rows.operands.batch * rows.config.kv_heads * extent * layout.size
    first = (rows.b * rows.config.kv_heads + rows.head) * extent
    return Cached(rows.config, emit.view(name, tensor, size), layout.size, first)


def _operand(rows: Rows, name: str) -> tuple[Any, CacheLayout, Expr]:
    """The tensor that holds the keys or the values, its layout and its extent."""
    config, operands = rows.config, rows.operands
    if name == "keys" and operands.k is not None:
        return operands.k, config.keys_layout, operands.panels
    return operands.v, config.values_layout, operands.capacity


def _floats(word: Expr) -> list[Expr]:
    """The four E4M3 floats of a word, over 2^8: as float16, whose fields theirs are but for a smaller bias."""
    halves = []
    for moved in (8, 0):
        high = word if moved == 0 else math.hold(T.shift_left(word, T.uint32(moved)))
        magnitude = T.bitwise_and(T.shift_right(high, T.uint32(1)), T.uint32(0x3F803F80))
        halves.append(math.hold(T.bitwise_or(magnitude, T.bitwise_and(high, T.uint32(0x80008000)))))

    def number(code: int) -> Expr:
        pair = halves[code % 2] if code < 2 else T.shift_right(halves[code % 2], T.uint32(16))
        return math.hold(T.cast(T.reinterpret("float16", T.cast(pair, "uint16")), "float32"))

    return [number(code) for code in range(QUAD)]
