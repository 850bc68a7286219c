"""Random dimensions and attributes."""

from __future__ import annotations

import struct
from typing import Any

import sympy
import torch
from hypothesis import strategies as st

from planish.ir import Dim, TensorType, symbol
from planish.ir.dims import FUNCTIONS
from planish.ir.types import DTYPES, as_dim, floor_div

SYMBOL_NAMES = ["B", "S", "C", "s77", "none", "f32", "Min", "a b", "x`\\y"]
symbols: st.SearchStrategy[sympy.Symbol] = st.sampled_from(SYMBOL_NAMES[:3]).map(symbol)
odd_symbols: st.SearchStrategy[sympy.Symbol] = st.sampled_from(SYMBOL_NAMES).map(symbol)


def _compound(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    divisor = st.integers(2, 5)
    pairs = st.tuples(parts, parts)
    return st.one_of(
        pairs.map(lambda p: as_dim(p[0] + p[1])),
        pairs.map(lambda p: as_dim(p[0] - p[1])),
        pairs.map(lambda p: as_dim(p[0] * p[1])),
        st.tuples(parts, divisor).map(lambda p: floor_div(*p)),
        # torch's Mod is of numbers that are not negative.
        st.tuples(symbols, divisor).map(lambda p: as_dim(FUNCTIONS["Mod"](*map(sympy.sympify, p)))),
        st.tuples(st.sampled_from(["Min", "Max"]), parts, parts).map(lambda p: as_dim(FUNCTIONS[p[0]](p[1], p[2]))),
        parts.map(lambda p: as_dim(sympy.sympify(p) ** 2)),
    )


def dims(leaves: st.SearchStrategy[Any] = symbols) -> st.SearchStrategy[Dim]:
    """Integers, symbols and expressions over them that are integers."""
    return st.recursive(st.one_of(st.integers(0, 9), leaves), _compound, max_leaves=5)


def sizes() -> st.SearchStrategy[Dim]:
    """Dimensions that a type may have: never negative, whatever the symbols are."""
    return st.one_of(
        st.integers(0, 9), symbols, symbols.map(lambda s: 2 * s + 1), symbols.map(lambda s: floor_div(s, 2))
    )


def types() -> st.SearchStrategy[TensorType]:
    shapes = st.lists(sizes(), max_size=4).map(tuple)
    return st.builds(TensorType, st.sampled_from(list(DTYPES.values())), shapes)


def floats() -> st.SearchStrategy[float]:
    """Every float, NaNs with other bits than the usual ones included."""
    patterns = st.integers(0, (1 << 52) - 1).map(lambda low: (0x7FF8 << 48) | low)
    odd = patterns.map(lambda bits: struct.unpack("<d", bits.to_bytes(8, "little"))[0])
    return st.one_of(st.sampled_from([0.0, -0.0, 1.0, 0.1]), st.floats(), odd)


def attributes() -> st.SearchStrategy[Any]:
    """Everything that an attribute may be, but for dataclasses."""
    dtypes: st.SearchStrategy[torch.dtype] = st.sampled_from(list(DTYPES.values()))
    texts = st.text(st.characters(), max_size=6)
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-1, 2), floats(), texts, dtypes, dims(odd_symbols)
    )
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
