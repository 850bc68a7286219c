"""Identity of attributes is (type, bits)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Dim, IRError, symbol
from planish.ir.attributes import attribute_key, bind_dims, leaves, map_leaves, substitute_dims
from planish.ir.ops import LayerNorm, RmsNorm, Slot, aten
from planish.testing.attributes import attributes, dims, floats


def same(a: Any, b: Any) -> bool:
    return attribute_key(a) == attribute_key(b)


@pytest.mark.parametrize(
    "one, other", [(1, 1.0), (1, True), (0, False), (1.0, True), (0.0, -0.0), ("1", 1), ((), None)]
)
def test_what_python_calls_equal_or_alike_differs(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert not same((one,), (other,))


@given(floats())
def test_floats_are_equal_by_bits(value: float) -> None:
    again: float = struct.unpack("<d", struct.pack("<d", value))[0]
    assert same(value, again)
    assert same(value, -value) == (struct.pack("<d", value) == struct.pack("<d", -value))


def test_nan_equals_itself() -> None:
    assert same(math.nan, float("nan"))
    assert not same(math.nan, -math.nan)


@given(attributes())
def test_keys_are_hashable_and_stable(value: Any) -> None:
    assert hash(attribute_key(value)) == hash(attribute_key(value))


@given(attributes(), attributes())
def test_tuples_differ_where_their_elements_do(a: Any, b: Any) -> None:
    assert same((a, b), (b, a)) == same(a, b)


def test_equal_expressions_have_one_key() -> None:
    b, s = symbol("B"), symbol("S")
    assert same(2 * (b + s), 2 * s + 2 * b)
    assert same(sympy.Integer(3), 3)
    assert not same(b, "B")


@dataclass(frozen=True)
class Pair:
    first: Any
    second: Any = 1.0


def test_records_are_compared_field_by_field() -> None:
    assert same(Pair(1), Pair(1, 1.0))
    assert not same(Pair(1), Pair(1, 1))
    assert not same(Pair(1), Pair(True))


@pytest.mark.parametrize("one, other", [(1, 1.0), (1, True), (0.0, -0.0)])
def test_operations_are_compared_by_their_attributes_identity(one: Any, other: Any) -> None:
    """What merges equal operations may use == and dictionaries."""
    a, b, again = (aten("add.Scalar", Slot(0), n) for n in (one, other, one))
    assert a == again and hash(a) == hash(again) and a != b and len({a, b, again}) == 2
    assert aten("add.Scalar", Slot(0), math.nan) == aten("add.Scalar", Slot(0), math.nan)
    assert RmsNorm(1.0) != LayerNorm(1.0)


@pytest.mark.parametrize("value", [[1], {1: 2}, torch.zeros(1), print, object(), 1j])
def test_what_is_no_attribute_is_refused(value: Any) -> None:
    with pytest.raises(IRError, match="cannot be an attribute"):
        attribute_key(value)


@given(dims(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_binding_is_substituting_integers(dim: Dim, b: int, s: int, c: int) -> None:
    sizes = {"B": b, "S": s, "C": c}
    wrapped = (Pair(dim), "B", 2.0)
    assert same(bind_dims(wrapped, sizes), substitute_dims(wrapped, sizes))


def test_a_fraction_cannot_be_bound() -> None:
    half = (symbol("B") / 2,)
    assert same(bind_dims(half, {"B": 4}), (2,))
    with pytest.raises(IRError, match="not an integer"):
        bind_dims(half, {"B": 3})


@given(attributes())
def test_leaves_are_what_mapping_sees(value: Any) -> None:
    seen: list[Any] = []

    def look(leaf: Any) -> Any:
        seen.append(leaf)
        return leaf

    map_leaves(value, look)
    assert same(tuple(leaves(value)), tuple(seen))


@given(attributes())
def test_mapping_identity_keeps_the_attribute(value: Any) -> None:
    assert same(map_leaves(value, lambda leaf: leaf), value)
