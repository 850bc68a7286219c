"""Embedding lookups are exact: equal to torch's, or to the encoding's own decoding, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.codegen.kernels.embedding import Embedding, embedding
from planish.ir import Grouped, GroupedInt, Levels
from planish.ir.encodings.levels import KINDS
from planish.ir.types import TensorType
from planish.testing.float_kernels import TILES, compile_kernel, gaussian

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor


@by_dtype
@pytest.mark.parametrize("index", ["int64", "int32"])
def test_dense_table(dtype: str, index: str) -> None:
    table = gaussian(31, 45, seed=1).to(DTYPES[dtype])
    kernel = compile_kernel(embedding(Embedding(31, 45, dtype, index_dtype=index)), TILES[0])

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(0, 30), max_size=400))
    def check(entries: list[int]) -> None:
        ids, y = torch.tensor(entries, dtype=getattr(torch, index)), torch.full((len(entries), 45), float("nan"))
        kernel(ids, stored(table), y)
        assert torch.equal(y, table[ids.long()].to(torch.float32))

    check()


def encodings(scales: torch.dtype) -> list[Grouped]:
    """Every width and grid, in groups that fill whole units of packed bytes and in groups that do not."""
    sizes = [(1, 8), (2, 12), (3, 8), (3, 6), (4, 32), (4, 6), (5, 32), (6, 3), (7, 96), (8, 3), (8, 96)]
    made: list[Grouped] = [GroupedInt(bits, group, scales) for bits, group in sizes]
    made += [GroupedInt(bits, group, scales, True) for bits, group in sizes[2:7]]
    return made + [Levels(kind, group, scales) for kind in KINDS for group in (32, 6)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", ["float16", *(pytest.param(d, marks=pytest.mark.full) for d in ("float32", "bfloat16"))]
)
@pytest.mark.parametrize("number", range(len(encodings(torch.float32))))
def test_grouped_table(dtype: str, number: int) -> None:
    table, ids = gaussian(17, 96, seed=2), torch.tensor([16, 0, 3, 3, 9])
    encoding = encodings(DTYPES[dtype])[number]
    storage = encoding.encode(table)
    y = torch.full((5, 96), float("nan"))
    kernel = compile_kernel(embedding(Embedding(17, 96, dtype, encoding)), TILES[0])
    kernel(ids, *map(stored, storage.values()), y)
    assert torch.equal(y, encoding.decode(storage, TensorType(torch.float32, (17, 96)))[ids])


@pytest.mark.parametrize("wrong", [-1, 31, 2**40])
def test_an_index_outside_the_table_is_an_error(wrong: int) -> None:
    kernel = compile_kernel(embedding(Embedding(31, 4, "float32")), TILES[0])
    with pytest.raises(RuntimeError, match="an index is outside the table of 31 entries"):
        kernel(torch.tensor([0, wrong]), torch.zeros(31, 4), torch.zeros(2, 4))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="table and scales of int8 are not supported: use one of float32"):
        Embedding(4, 4, "int8")
    with pytest.raises(ValueError, match="indices cannot be uint8"):
        Embedding(4, 4, "float32", index_dtype="uint8")
