"""Encodings: how a parameter's storage represents its logical tensor, and what that costs to the byte."""

from __future__ import annotations

from planish.ir.encodings.base import Encoding
from planish.ir.encodings.dense import Dense
from planish.ir.encodings.grouped import GroupedInt

ENCODINGS: dict[str, type[Encoding]] = {"dense": Dense, "grouped_int": GroupedInt}

__all__ = ["ENCODINGS", "Dense", "Encoding", "GroupedInt"]
