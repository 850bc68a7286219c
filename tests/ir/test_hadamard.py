"""Hadamard matrices are what they say, exactly, for every order that there is one of."""

from __future__ import annotations

import pytest
import torch
from sympy import factorint

from planish.ir.hadamard import core_of, hadamard, largest_block
from planish.ir.hadamard_circulants import FIRST_ROWS

OF_NETWORKS = {
    896: 28, 1152: 36, 1536: 12, 2304: 36, 2560: 20, 3072: 12, 3584: 28, 4864: 76, 5120: 20, 5504: 172, 6400: 100, 8960: 140,
    9728: 76, 11008: 172, 13696: 428, 13824: 108, 14336: 28, 14848: 116, 18944: 148, 27392: 428, 27648: 108, 28672: 28,
}  # fmt: skip
"""Sizes of networks and the order that makes them: Paley's, a field of 7^2 elements among them, and those of circulants."""

MISSING = {
    412, 436, 596, 604, 612, 652, 668, 716, 732, 756, 764, 772, 836, 852, 872, 876, 892, 932, 940, 956, 964, 980, 988, 996,
    1004, 1012,
}  # fmt: skip
"""Of the multiples of 4 up to 1024, those that no construction here reaches."""

KNOWN = {1, 2} | (set(range(4, 1025, 4)) - MISSING)


def is_hadamard(matrix: torch.Tensor) -> bool:
    # Sums of at most 1024 ones of either sign: exact in float32.
    wide = matrix.float()
    return bool((matrix.abs() == 1).all()) and torch.equal(wide @ wide.T, len(wide) * torch.eye(len(wide)))


def test_the_orders_up_to_1024_that_are_known() -> None:
    assert {order for order in range(-1, 1025) if core_of(order) is not None} == KNOWN


@pytest.mark.parametrize(("least", "most"), [(1, 532), pytest.param(533, 1024, marks=pytest.mark.full)])
def test_every_known_order_has_a_hadamard_matrix(least: int, most: int) -> None:
    for order in sorted(KNOWN & set(range(least, most + 1))):
        assert is_hadamard(hadamard(order)), order


@pytest.mark.parametrize("order", FIRST_ROWS)
def test_circulants_are_kept_only_of_orders_that_nothing_else_makes(order: int) -> None:
    assert core_of(order) == order and order % 8 == 4
    # Paley's first and second constructions want the power of one prime.
    assert len(factorint(order - 1)) > 1 and len(factorint(order // 2 - 1)) > 1


def test_williamson_matrices_are_of_symmetric_circulants() -> None:
    for order in (92, 116):
        matrix, m = hadamard(order), order // 4
        first, others = matrix[:m, :m], [matrix[:m, k * m : (k + 1) * m].flip(1) for k in (1, 2, 3)]
        for block in (first, *others):
            assert torch.equal(block, block.T)
            assert torch.equal(block, block.roll((1, 1), (0, 1)))


@pytest.mark.parametrize("size", OF_NETWORKS)
def test_sizes_of_networks(size: int) -> None:
    assert core_of(size) == OF_NETWORKS[size]
    assert is_hadamard(hadamard(OF_NETWORKS[size]))
    assert largest_block(size) == size


@pytest.mark.parametrize(
    "size",
    [pytest.param(n, marks=pytest.mark.full) for n in (3072, 5120, 6400, 11008)]
    + [pytest.param(n, marks=pytest.mark.nightly) for n in (13824, 14336, 18944, 28672)],
)
def test_whole_matrices_of_networks(size: int) -> None:
    """H (H^T x) = n x for integers x, exactly; for any other matrix it is so once in 2^40 draws at most."""
    matrix = hadamard.__wrapped__(size)
    x = torch.randint(-512, 512, (size, 4), generator=torch.Generator().manual_seed(size)).double()
    dual, pieces = torch.zeros_like(x), range(0, size, 512)
    for n in pieces:
        dual += matrix[n : n + 512].double().T @ x[n : n + 512]
    for n in pieces:
        rows = matrix[n : n + 512]
        assert bool((rows.abs() == 1).all())
        assert torch.equal(rows.double() @ dual, size * x[n : n + 512])


def test_the_largest_block_is_the_largest_divisor_with_a_matrix() -> None:
    for size in range(1, 1025):
        assert largest_block(size) == max(block for block in KNOWN if size % block == 0), size


def test_other_sizes_are_tiled_by_blocks_or_refused() -> None:
    assert [largest_block(n) for n in (1, 7, 48, 50, 92, 180, 412, 872)] == [1, 1, 48, 2, 92, 180, 4, 8]
    with pytest.raises(ValueError, match="order 412 is known here: use blocks of 4"):
        hadamard(412)
