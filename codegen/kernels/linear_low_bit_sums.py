"""What one row sums of a packed weight: bytes of the weight cut off above a field, or not at all, rather than field by field.

For one load of a bundle, let E_i be the sum of products of activations and of bytes of which fields up to the i-th are left.
Then E_i - E_(i-1) is a power of two times what field i sums to. The last of these sums takes whole bytes, which no operation
has to cut: n fields cost n - 1 masks and no shift. The power of two, a field's place, is left in the sums of a column until
the last multiplication. All of this is exact.

Machines whose products take no whole bytes have every field by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from planish.codegen.kernels.linear_low_bit_packing import HIGHEST, LowBitLayout, Piece
from planish.ir.encodings.grouped import Grid

BYTE = 0xFF


class Sum(NamedTuple):
    """The products of one part of the bytes of one load.

    Attributes:
        bundle, load: which, of a step.
        shift: places by which bytes are shifted to the right.
        mask: what is kept of them then.
        before: the number of the sum that is to be subtracted, None for none.
        start: how many times the sum of the activations it starts from.
    """

    bundle: int
    load: int
    shift: int
    mask: int
    before: int | None
    start: int


class Column(NamedTuple):
    """What the sums of a vector of columns are made of.

    Attributes:
        parts: numbers of sums, each less the one before it, and what to multiply that by.
        factor: by which all parts together have to be multiplied to be the sum of levels,
        first: once this many times the sum of the activations has been added to that; 0 where sums start from it.
    """

    parts: tuple[tuple[int, float], ...]
    factor: float
    first: int


class Sums(NamedTuple):
    """All sums of a panel.

    Attributes:
        sums: numbered as `Sum.before` and `Column.parts` say.
        columns: one for each vector.
        largest: the largest magnitude of a sum for one activation of 1.
        largest_column: the same of a column's parts together.
    """

    sums: tuple[Sum, ...]
    columns: tuple[Column, ...]
    largest: int
    largest_column: int


def sums_of(layout: LowBitLayout, grid: Grid, whole_bytes: bool) -> Sums:
    """The sums of a panel whose vectors have one product each in a step.

    ``whole_bytes`` says whether the machine's products take bytes as they lie.
    """
    numbers: dict[Piece, int] = {}
    columns = [_column(pieces, grid, whole_bytes) for pieces in layout.pieces]
    offsets = {pieces[0]: offset for pieces, (_, _, offset) in zip(layout.pieces, columns, strict=True)}
    sums: list[Sum] = []
    largest, low, high = 0, 0, 0
    for piece in sorted(piece for pieces in layout.pieces for piece in pieces):
        before = len(sums) - 1 if whole_bytes and piece.at else None
        shift, place = _place(piece, whole_bytes)
        mask = (1 << piece.at + piece.width) - 1 if whole_bytes else ((1 << piece.width) - 1) << place
        start = own = offsets.get(piece) or 0
        if before is None:
            low = high = 0
        else:
            start += sums[before].start
        low, high = low + own, high + own + (((1 << piece.width) - 1) << place)
        largest = max(largest, -low, high)
        numbers[piece] = len(sums)
        sums.append(Sum(0, piece.load, shift, mask, before, start))
    if layout.flipped:
        # Bytes lie 128 lower.
        sums = [each._replace(start=each.start + HIGHEST) if each.mask == BYTE else each for each in sums]
    found = []
    for pieces, (unit, factor, offset) in zip(layout.pieces, columns, strict=True):
        parts = tuple((numbers[piece], 2.0 ** (unit - _unit(piece, whole_bytes))) for piece in pieces)
        found.append(Column(parts, factor, grid.first if offset is None else 0))
    levels = max(grid.count - 1, -(grid.first // grid.step))
    largest_column = max(levels << max(0, unit) for unit, _, _ in columns)
    panel = [_of_bundle(bundle, sums, found) for bundle in range(layout.bundles)]
    all_sums, all_columns = (tuple(itertools.chain(*parts)) for parts in zip(*panel, strict=True))
    return Sums(all_sums, all_columns, largest, largest_column)


def _of_bundle(bundle: int, sums: Sequence[Sum], columns: Sequence[Column]) -> tuple[list[Sum], list[Column]]:
    """The sums of one bundle and its columns, numbered among those of all."""
    first = bundle * len(sums)
    numbered = [
        each._replace(bundle=bundle, before=None if each.before is None else first + each.before) for each in sums
    ]
    return numbered, [
        column._replace(parts=tuple((first + i, factor) for i, factor in column.parts)) for column in columns
    ]


def _column(pieces: Sequence[Piece], grid: Grid, whole_bytes: bool) -> tuple[int, float, int | None]:
    """Of a vector of columns: by which power of two its parts exceed codes, `Column.factor`, and what its first piece's sum
    starts from, None where that is no integer."""
    unit = _unit(pieces[0], whole_bytes)
    offset, rest = divmod(grid.first << max(unit, 0), grid.step << max(-unit, 0))
    return unit, grid.step * 2.0**-unit, None if rest else offset


def _place(piece: Piece, whole_bytes: bool) -> tuple[int, int]:
    """By how much to shift the bytes of a load to the right, and where a piece lies then."""
    if whole_bytes or piece.at + piece.width <= 4:
        return 0, piece.at
    # One shift serves all pieces of the upper half.
    shift = 4 if piece.at >= 4 else piece.at
    return shift, piece.at - shift


def _unit(piece: Piece, whole_bytes: bool) -> int:
    """By which power of two what a piece sums to exceeds its share in codes."""
    return _place(piece, whole_bytes)[1] - piece.shift
