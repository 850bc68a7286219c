"""How threads cut a row of a cache: into pieces that one of them reads at once."""

from __future__ import annotations

from dataclasses import dataclass

from planish.codegen.kernels.blocks.attention_rows import QUAD, quads
from planish.codegen.kernels.kv_cache import WORD, CacheLayout
from planish.codegen.tiles.float import Expr

LARGEST_WORDS = 4
"""32-bit words of codes that one instruction reads: 16 bytes."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of a row: `count` of them, of `quads` quads of elements each, the last ones perhaps past its end.

    In shared memory the first quads of all pieces lie side by side, behind them the second ones: neighbouring threads, which
    have neighbouring pieces, then read neighbouring quads.
    """

    count: int
    quads: int

    @property
    def elements(self) -> int:
        """Elements of one piece."""
        return self.quads * QUAD

    def quad(self, piece: Expr, number: int) -> Expr:
        """The place in shared memory, in quads, of quad `number` of a piece."""
        return piece if number == 0 else piece + number * self.count

    def place(self, element: Expr) -> Expr:
        """The place in shared memory of an element of the row."""
        if self.quads == 1:
            return element
        piece, rest = element // self.elements, element % self.elements
        return (rest // QUAD * self.count + piece) * QUAD + rest % QUAD


def pieces_of(layout: CacheLayout, threads: int, largest: int) -> Pieces:
    """The pieces of the rows of a cache: floats a quad at a time, codes in as many words as still leave a piece to each of
    `threads` and make no more than `largest` quads, or in single words."""
    if layout.codes is None:
        return Pieces(quads(layout.size), 1)
    row, of_word = layout.row_codes // WORD, layout.codes.per_byte
    words = LARGEST_WORDS
    while words > 1 and (row % words or row // words < threads or words * of_word > largest):
        words //= 2
    return Pieces(row // words, words * of_word)
