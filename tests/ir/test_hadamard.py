"""Hadamard matrices are what they say, exactly, for every order that there is one of."""

from __future__ import annotations

import pytest
import torch

from planish.ir.hadamard import core_of, hadamard, largest_block

OF_NETWORKS = {
    896: 28, 1152: 36, 1536: 12, 2304: 36, 2560: 20, 3072: 12, 3584: 28, 4864: 76, 5120: 20, 6400: 100, 8960: 140, 9728: 76,
    11008: 344, 13824: 108, 14336: 28, 18944: 148, 27648: 108, 28672: 28,
}  # fmt: skip
"""Sizes of networks and the order that makes them: Paley's, with fields of 7^2, 7^3 and 3^3 elements among them."""


def is_hadamard(matrix: torch.Tensor) -> bool:
    wide = matrix.double()
    return bool((matrix.abs() == 1).all()) and torch.equal(wide @ wide.T, len(wide) * torch.eye(len(wide)).double())


def test_every_order_up_to_400_that_is_known() -> None:
    known = [order for order in range(1, 401) if core_of(order) is not None]
    for order in known:
        assert is_hadamard(hadamard(order)), order
    # Of the multiples of 4, those that neither of Paley's constructions nor doubling reaches.
    assert [n for n in range(4, 401, 4) if n not in known] == [
        92,
        116,
        156,
        172,
        184,
        188,
        232,
        236,
        260,
        268,
        292,
        324,
        356,
        372,
        376,
    ]
    assert not any(n % 4 for n in known if n > 2)


@pytest.mark.parametrize("size", OF_NETWORKS)
def test_sizes_of_networks(size: int) -> None:
    assert core_of(size) == OF_NETWORKS[size]
    assert is_hadamard(hadamard(OF_NETWORKS[size]))
    assert largest_block(size) == size


def test_other_sizes_are_tiled_by_blocks_or_refused() -> None:
    assert [largest_block(n) for n in (1, 7, 48, 50, 92, 180)] == [1, 1, 48, 2, 4, 180]
    with pytest.raises(ValueError, match="order 92 is known here: use blocks of 4"):
        hadamard(92)
