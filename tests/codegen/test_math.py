"""Each elementary function against float64, over samples of every exponent, and at the values where formulas break."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from tvm.tirx.script import builder as T

from planish.codegen import math as tir_math
from planish.codegen.kernels import emit
from planish.codegen.tiles.float import FloatTile
from planish.testing.float_kernels import TILES, by_tile, compile_kernel

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Case:
    """A function's oracle in float64, its promised error in ulp, its domain, and exact values at special points."""

    oracle: Callable[[torch.Tensor], torch.Tensor]
    ulp: float
    special: list[tuple[float, float]]
    low: float = -INF
    high: float = INF
    smallest_result: float = 0.0


LIMIT = tir_math.ANGLE_LIMIT
CASES = {
    "exp": Case(torch.exp, 0.9, [(0.0, 1.0), (INF, INF), (-INF, 0.0), (88.8, INF), (-104.0, 0.0), (1e38, INF)]),
    "exp_nonpositive": Case(
        torch.exp, 0.9, [(0.0, 1.0), (-INF, 0.0), (-1e30, 0.0)], high=0.0, smallest_result=2.0**-126.4
    ),
    "log": Case(torch.log, 1.0, [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (-INF, NAN)]),
    "sigmoid": Case(torch.sigmoid, 2.5, [(0.0, 0.5), (INF, 1.0), (-INF, 0.0), (100.0, 1.0)]),
    "tanh": Case(torch.tanh, 1.5, [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e30, 1.0)]),
    "erf": Case(torch.erf, 1.5, [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (4.5, 1.0)]),
    "normal_cdf": Case(
        lambda x: torch.special.erfc(x * -math.sqrt(0.5)) / 2, 6.0, [(0.0, 0.5), (INF, 1.0), (-INF, 0.0), (50.0, 1.0)]
    ),
    "sin": Case(torch.sin, 2.0, [(0.0, 0.0), (INF, NAN), (2 * LIMIT, NAN)], -LIMIT, LIMIT),
    "cos": Case(torch.cos, 2.0, [(0.0, 1.0), (INF, NAN), (-2 * LIMIT, NAN)], -LIMIT, LIMIT),
}
by_name = pytest.mark.parametrize("name", CASES)


@cache
def compiled(name: str, tile: FloatTile, lanes: int) -> Any:
    def body() -> None:
        rows = emit.symbol("rows")
        x, y = (emit.argument(argument, (rows, lanes), "float32") for argument in "xy")
        with emit.loop("row", rows) as row:
            value = x[row, 0] if lanes == 1 else emit.load(x, [row, 0], lanes)
            T.buffer_store(y, getattr(tir_math, name)(value), [row, 0 if lanes == 1 else T.ramp(0, 1, lanes)])

    return compile_kernel(emit.prim_func(name, body), tile)


def apply(name: str, tile: FloatTile, x: torch.Tensor, lanes: int | None = None) -> torch.Tensor:
    lanes = tile.lanes if lanes is None else lanes
    padded = torch.zeros(-(-x.numel() // lanes), lanes)
    padded.view(-1)[: x.numel()] = x
    y = torch.empty_like(padded)
    compiled(name, tile, lanes)(padded, y)
    return y.view(-1)[: x.numel()]


def largest_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """In ulp of the float32 nearest to ``exact``; where that is inf or NaN, ``got`` must be the same."""
    nearest = exact.float()
    finite = nearest.isfinite()
    assert torch.equal(got.isnan(), nearest.isnan())
    assert torch.equal(got[nearest.isinf()], nearest[nearest.isinf()])
    size = nearest[finite].abs()
    ulp = torch.nextafter(size, torch.tensor(INF)).double() - size.double()
    ulp = torch.where(ulp.isinf(), 2.0**104, ulp)
    return float(((got[finite].double() - exact[finite]).abs() / ulp).max())


def check(name: str, tile: FloatTile, x: torch.Tensor) -> None:
    case = CASES[name]
    x = x[(x >= case.low) & (x <= case.high)]
    exact = case.oracle(x.double())
    normal = ~(exact.abs() < case.smallest_result)
    got = apply(name, tile, x)
    assert largest_error(got[normal], exact[normal]) <= case.ulp
    assert bool((got[~normal].double() - exact[~normal]).abs().le(case.smallest_result).all())


@by_tile
@by_name
def test_error_is_as_stated(name: str, tile: FloatTile) -> None:
    every_exponent = torch.arange(-(2**31), 2**31, 16001, dtype=torch.int64).to(torch.int32).view(torch.float32)
    ordinary = torch.linspace(-20, 20, 40_001)
    check(name, tile, torch.cat([every_exponent, ordinary]))


@pytest.mark.nightly
@by_name
def test_error_on_every_float(name: str) -> None:
    for start in range(-(2**31), 2**31, 2**26):
        check(name, TILES[0], torch.arange(start, start + 2**26, dtype=torch.int64).to(torch.int32).view(torch.float32))


@by_tile
@by_name
def test_special_values(name: str, tile: FloatTile) -> None:
    case = CASES[name]
    x = torch.tensor([*(argument for argument, _ in case.special), NAN, -NAN])
    payload = torch.tensor([0x7FC00001, 0x7FFFFFFF], dtype=torch.int64).to(torch.int32).view(torch.float32)
    got = apply(name, tile, torch.cat([x, payload]))
    expected = torch.tensor([*(value for _, value in case.special), NAN, NAN, NAN, NAN])
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[~got.isnan()].view(torch.int32), expected[~got.isnan()].view(torch.int32))


@by_name
def test_bits_do_not_depend_on_the_lanes(name: str) -> None:
    x = torch.cat([torch.linspace(-9, 9, 3001), torch.tensor([1e-40, -1e-40, 1e30, -1e30, 0.0])])
    if CASES[name].high <= 0:
        x = -x.abs()
    expected = apply(name, TILES[0], x)
    for tile in TILES:
        for lanes in (1, 4):
            got = apply(name, tile, x, lanes)
            assert torch.equal(got.view(torch.int32)[~got.isnan()], expected.view(torch.int32)[~got.isnan()])
