"""Types in the manifest: their text says the same sizes as the IR's dimensions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import Max, Min, Mod

from planish.codegen.runtime.sizes import parse_type
from planish.ir import InputError, TensorType, symbol
from planish.ir.types import DTYPES, as_dim, floor_div

LEAVES = st.one_of(st.integers(1, 9), st.sampled_from([symbol("B"), symbol("S"), symbol("C")]))


def _grown(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda p: as_dim(p[0] + p[1])),
        pairs.map(lambda p: as_dim(p[0] * p[1])),
        st.tuples(inner, st.integers(1, 5)).map(lambda p: floor_div(p[0], p[1])),
        pairs.map(lambda p: as_dim(Max(*p))),
        pairs.map(lambda p: as_dim(Min(*p))),
        st.tuples(inner, st.integers(2, 5)).map(lambda p: as_dim(Mod(p[0], p[1]))),
    )


DIMS = st.recursive(LEAVES, _grown, max_leaves=6)


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(DIMS, max_size=4),
    st.fixed_dictionaries({n: st.integers(1, 20) for n in "BSC"}),
)
def test_sizes_are_those_of_the_ir(dtype: str, dims: list[object], sizes: dict[str, int]) -> None:
    declared = TensorType(DTYPES[dtype], tuple(dims))  # type: ignore[arg-type]
    parsed = parse_type(str(declared))
    assert (parsed.dtype, parsed.shape(sizes)) == (dtype, declared.concrete(sizes))


@pytest.mark.parametrize("text", ["", "f32", "f33[2]", "f32[2", "f32[import os]", "f32[2)(3]"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="holds no valid type"):
        parse_type(text)


@pytest.mark.parametrize("text", ["f32[X]", "f32[open('x')]", "f32[B.real]", "f32[B if B else 1]"])
def test_nothing_else_is_computed(text: str) -> None:
    with pytest.raises(InputError, match="cannot be computed"):
        parse_type(text).shape({"B": 2})
