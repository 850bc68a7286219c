"""The Hadamard transform is the matrix of its docstring, block by block, and undoes itself in a product."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import IRError, TensorType
from planish.ir.hadamard import hadamard
from planish.ir.ops import Hadamard
from planish.testing.profiles import share

BLOCKS = (1, 2, 4, 12, 16, 20, 28, 36, 56, 64, 76, 96, 100, 144, 200)


def transformed(x: torch.Tensor, block: int) -> torch.Tensor:
    (y,) = Hadamard(block).evaluate(x)
    return y


@share(0.5)
@given(st.sampled_from(BLOCKS), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_it_is_the_dense_block_diagonal_matrix(block: int, count: int, seed: int) -> None:
    """Sums of integers are exact in any order, so only the last product rounds, in the same way on both sides."""
    x = torch.randint(-64, 65, (2, 3, count * block), generator=torch.Generator().manual_seed(seed)).double()
    matrix = torch.block_diag(*[hadamard(block).double()] * count)
    assert torch.equal(transformed(x, block), (x @ matrix.T) * (1 / math.sqrt(block)))
    single = transformed(x.float(), block)
    assert torch.equal(single, (x @ matrix.T).float() * (1 / math.sqrt(block)))
    assert torch.equal(transformed(x.bfloat16(), block), single.bfloat16())


@pytest.mark.parametrize("block", BLOCKS)
def test_a_product_of_two_transformed_vectors_is_the_product(block: int) -> None:
    """For blocks that are squares the division is exact too."""
    generator = torch.Generator().manual_seed(block)
    x, weight = (torch.randint(-8, 9, (n, 2 * block), generator=generator).double() for n in (3, 5))
    product, want = transformed(x, block) @ transformed(weight, block).T, x @ weight.T
    root = math.isqrt(block)
    if root * root == block and root & (root - 1) == 0:
        assert torch.equal(product, want)
    # Each factor has two roundings, sums of 2 * block products that many more.
    bound = (2 * block + 6) * 2.0**-53 * float(x.norm(dim=1).max() * weight.norm(dim=1).max())
    assert float((product - want).abs().max()) <= bound


def test_what_does_not_fit_is_refused() -> None:
    x = TensorType(torch.float32, (3, 24))
    assert Hadamard(12).infer(x) == (x,)
    with pytest.raises(IRError, match="no Hadamard matrix of order 6 is known here"):
        Hadamard(6).infer(x)
    with pytest.raises(IRError, match="not cut into blocks of 16"):
        Hadamard(16).infer(x)
    with pytest.raises(IRError, match="must be a float tensor with an axis"):
        Hadamard(4).infer(x.with_dtype(torch.int8))
