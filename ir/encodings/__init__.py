"""Encodings: how a parameter's storage represents its logical tensor, and what that costs to the byte."""

from __future__ import annotations

from planish.ir.encodings.base import Encoding
from planish.ir.encodings.dense import Dense
from planish.ir.encodings.grouped import Grouped
from planish.ir.encodings.grouped_int import GroupedInt
from planish.ir.encodings.levels import Levels

ENCODINGS: dict[str, type[Encoding]] = {"dense": Dense, "grouped_int": GroupedInt, "levels": Levels}

__all__ = ["ENCODINGS", "Dense", "Encoding", "Grouped", "GroupedInt", "Levels"]
