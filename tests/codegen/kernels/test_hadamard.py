"""Laws of the Hadamard kernel: the op's bits where sums are in pairs, exact on integers, within a derived bound elsewhere."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from planish.codegen.kernels.hadamard import SERIAL_WORK, Hadamard, table, transform
from planish.codegen.kernels.quantize_activation import QuantizeActivation
from planish.codegen.tiles.float import FloatTile
from planish.ir.hadamard import hadamard
from planish.ir.ops import Hadamard as HadamardOp
from planish.ir.ops import QuantizeActivation as QuantizeActivationOp
from planish.testing.float_kernels import TILES, by_tile, compile_kernel, gaussian, small_integers, unaligned

U = 2.0**-24

# (block, blocks in a row): powers of two below, at and above a vector and what registers hold; orders times powers of two
# that divide no vector, some that do, and both in several blocks.
POWERS = [(1, 5), (2, 3), (4, 5), (8, 1), (16, 3), (32, 1), (64, 2), (256, 1), (512, 3), (2048, 1), (8192, 1)]
ORDERS = [
    (12, 1), (12, 3), (20, 1), (24, 1), (28, 1), (36, 5), (40, 1), (56, 3), (96, 1), (100, 1), (112, 2), (160, 1), (320, 2),
    (576, 1), (1216, 1), (6400, 1),
]  # fmt: skip


@cache
def compiled(config: Hadamard) -> Any:
    return compile_kernel(transform(config), config.tile)


def operands(config: Hadamard) -> list[torch.Tensor]:
    return [table(config.core)] if config.core > 1 else []


def apply(config: Hadamard, x: torch.Tensor) -> torch.Tensor:
    y = unaligned(torch.full_like(x, float("nan")))
    compiled(config)(unaligned(x), *operands(config), y)
    return y


def quantized(config: Hadamard, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = torch.full(x.shape, 99, dtype=torch.int8), torch.full((x.shape[0], 1), float("nan"))
    compiled(config)(unaligned(x), *operands(config), codes, scale)
    return codes, scale


@by_tile
@pytest.mark.parametrize(("block", "count"), POWERS)
def test_powers_of_two_have_the_bits_of_the_op(tile: FloatTile, block: int, count: int) -> None:
    x = gaussian(3, block * count, seed=block)
    (want,) = HadamardOp(block).evaluate(x)
    assert torch.equal(apply(Hadamard(block * count, block, tile), x), want)


@by_tile
@pytest.mark.parametrize(("block", "count"), ORDERS)
def test_other_orders_are_exact_on_integers_and_within_the_bound(tile: FloatTile, block: int, count: int) -> None:
    """Every term meets as many roundings as there are pairs and sums before the end; then one of the factor, one of the
    product."""
    config = Hadamard(block * count, block, tile)
    whole = small_integers(2, config.width, seed=1)
    (want,) = HadamardOp(block).evaluate(whole)
    assert torch.equal(apply(config, whole), want)
    x = gaussian(3, config.width, seed=2)
    matrix = torch.block_diag(*[hadamard(block).double()] * count) * config.factor
    roundings = config.power.bit_length() - 1 + config.core + 2
    bound = 1.01 * roundings * U * x.double().abs() @ matrix.T.abs()
    assert bool(((apply(config, x).double() - x.double() @ matrix.T).abs() <= bound).all())


@by_tile
@pytest.mark.parametrize(("block", "count"), [(4, 5), (64, 2), (36, 5), (320, 2)])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_at_once_it_has_the_bits_of_both_kernels(tile: FloatTile, block: int, count: int, bits: int) -> None:
    op = QuantizeActivationOp(bits)
    width = block * count
    fused = Hadamard(width, block, tile, QuantizeActivation(width, tile, op.largest))
    x = gaussian(5, width, seed=3)
    x[1] = 0
    x[2, width // 2] = float("inf")
    x[3, 0] = float("nan")
    codes, scale = quantized(fused, x)
    want, of_rows = op.evaluate(apply(Hadamard(width, block, tile), x))
    finite = torch.tensor([0, 1, 4])
    assert torch.equal(codes[finite], want[finite]) and torch.equal(scale[finite], of_rows[finite])
    assert not codes[2:4].any() and not torch.isfinite(scale[2:4]).any()


@by_tile
@pytest.mark.parametrize(("block", "count"), [(1, 3), (28, 2), (64, 1), (100, 1)])
def test_rows_do_not_depend_on_each_other(tile: FloatTile, block: int, count: int) -> None:
    config = Hadamard(block * count, block, tile)
    # On one thread, and on several.
    for rows in (0, 1, 9, max(2, -(-SERIAL_WORK // config.work)) + 3):
        x = gaussian(rows, config.width, seed=rows)
        y = apply(config, x)
        for row in range(0, rows, 1 + rows // 9):
            assert torch.equal(apply(config, x[row : row + 1].clone())[0], y[row])


def test_rows_that_are_no_blocks_are_refused() -> None:
    for width, block in ((24, 16), (18, 6), (0, 4)):
        with pytest.raises(ValueError, match=f"rows of {width} elements have no transform in blocks of {block}"):
            Hadamard(width, block, TILES[0])
