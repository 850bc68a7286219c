"""Encodings: how a parameter's storage represents its logical tensor, and what that costs to the byte."""

from __future__ import annotations

from planish.ir.encodings.base import Encoding
from planish.ir.encodings.dense import Dense
from planish.ir.encodings.float_blocks import Float8, MxFp4, NvFp4
from planish.ir.encodings.grouped import Grouped
from planish.ir.encodings.grouped_int import GroupedInt
from planish.ir.encodings.levels import Levels
from planish.ir.encodings.rows import require_rows, rounded

ENCODINGS: dict[str, type[Encoding]] = {made.name: made for made in (Dense, GroupedInt, Levels, NvFp4, MxFp4, Float8)}

__all__ = [
    "ENCODINGS", "Dense", "Encoding", "Float8", "Grouped", "GroupedInt", "Levels", "MxFp4", "NvFp4", "require_rows",
    "rounded",
]  # fmt: skip
