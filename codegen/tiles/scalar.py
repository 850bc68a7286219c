"""A float tile of one lane: for machines on which each of many threads computes one element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.pointwise.dtypes import loaded
from planish.codegen.tiles.float import E4M3, STORAGE_DTYPES, Expr, FloatTile
from planish.codegen.tiles.small_floats import e4m3


@dataclass(frozen=True)
class ScalarTile(FloatTile):
    """Plain floats. A place that may lie outside its buffer is given as its address, and read only where it exists."""

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        return current().fma(a, b, c)

    def broadcast(self, scalar: Expr) -> Expr:
        return scalar

    def widen(self, vector: Expr, dtype: str) -> Expr:
        if dtype == E4M3:
            return e4m3(vector)
        if dtype not in STORAGE_DTYPES:
            raise ValueError(f"the tile {self.name} cannot widen {dtype}: use one of {', '.join(STORAGE_DTYPES)}")
        return loaded(vector, getattr(torch, dtype))

    def load_first(self, pointer: Expr, count: Expr) -> Expr:
        (element,) = pointer.args
        return T.if_then_else(count > 0, element, T.float32(0))

    def store_first(self, pointer: Expr, vector: Expr, count: Expr) -> None:
        (element,) = pointer.args
        with T.If(count > 0), T.Then():
            T.buffer_store(element.buffer, vector, list(element.indices))
