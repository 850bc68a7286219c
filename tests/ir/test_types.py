"""Types: equality for all values of the symbols, resolution, and matching of shapes."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Dim, IRError, TensorType, symbol
from planish.ir.types import as_dim, bind_shape, dtype_name, floor_div, resolve, same_dim, substitute
from planish.testing.attributes import dims, sizes, types

B, S = symbol("B"), symbol("S")
BINDINGS = st.fixed_dictionaries({"B": st.integers(1, 9), "S": st.integers(1, 9), "C": st.integers(1, 9)})


def value(dim: Dim, bindings: dict[str, int]) -> object:
    """The dimension's value, fractions included."""
    return substitute(dim, bindings)


@given(dims(), dims(), BINDINGS)
def test_dims_called_equal_have_equal_values(a: Dim, b: Dim, bindings: dict[str, int]) -> None:
    assert same_dim(a, a)
    if same_dim(a, b):
        assert value(a, bindings) == value(b, bindings)


@given(dims(), dims())
def test_rearranged_sums_and_products_are_equal(a: Dim, b: Dim) -> None:
    assert same_dim(as_dim(a + b), as_dim(b + a))
    assert same_dim(as_dim(2 * (a + b)), as_dim(2 * a + 2 * b))
    assert not same_dim(a, as_dim(a + 1))


@given(sizes(), st.integers(1, 5), BINDINGS)
def test_floor_division_is_pythons(dim: Dim, divisor: int, bindings: dict[str, int]) -> None:
    assert resolve(floor_div(dim, divisor), bindings) == resolve(dim, bindings) // divisor


@given(types(), BINDINGS)
def test_substituting_integers_makes_the_concrete_shape(type: TensorType, bindings: dict[str, int]) -> None:
    fixed = type.substitute(bindings)
    assert fixed.shape == type.concrete(bindings)
    assert not fixed.symbols
    assert fixed == TensorType(type.dtype, type.concrete(bindings))


@given(types())
def test_equal_types_have_equal_hashes(type: TensorType) -> None:
    again = TensorType(type.dtype, tuple(as_dim(sympy.sympify(d) + B - B) for d in type.shape))
    assert type == again and hash(type) == hash(again)
    assert type != type.with_shape((*type.shape, 1))


@given(types(), BINDINGS)
def test_a_concrete_shape_binds_its_symbols(type: TensorType, bindings: dict[str, int]) -> None:
    found: dict[str, int] = {}
    bind_shape(type, type.concrete(bindings), found, "x")
    assert found.items() <= bindings.items()
    alone = {d.name for d in type.shape if isinstance(d, sympy.Symbol)}
    assert alone <= found.keys()


@pytest.mark.parametrize(
    "declared, shape, message",
    [
        ((B, S), (2,), "the ranks differ"),
        ((B, 4), (2, 5), "axis 1 differs"),
        ((B, B), (2, 3), "axis 1 differs"),
        ((B, 2 * B), (2, 5), "axis 1 differs"),
        ((B,), (0,), "must be at least 1"),
    ],
)
def test_shapes_that_do_not_match_are_refused(declared: tuple[Dim, ...], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(IRError, match=message):
        bind_shape(TensorType(torch.float32, declared), shape, {}, "x")


def test_an_unbound_symbol_is_named() -> None:
    with pytest.raises(IRError, match="no value is known for S"):
        resolve(B + S, {"B": 2})


def test_a_fraction_is_refused() -> None:
    with pytest.raises(IRError, match="not an integer"):
        resolve(B / 2, {"B": 3})


@pytest.mark.parametrize("dim", [True, 1.0, "B", None])
def test_what_is_no_dimension_is_refused(dim: object) -> None:
    with pytest.raises(IRError, match="a dimension must be"):
        as_dim(dim)


def test_negative_sizes_and_foreign_dtypes_are_refused() -> None:
    with pytest.raises(IRError, match="cannot be negative"):
        TensorType(torch.float32, (-1,))
    with pytest.raises(IRError, match="not held by the IR"):
        dtype_name(torch.complex64)


def test_sympys_functions_become_torchs() -> None:
    """Exported programs use torch's; the two must not be taken for different dimensions."""
    from torch.utils._sympy import functions

    assert same_dim(as_dim(sympy.Max(B, S)), as_dim(functions.Max(B, S)))
    assert same_dim(as_dim(sympy.Mod(B, 3)), as_dim(functions.Mod(B, 3)))
