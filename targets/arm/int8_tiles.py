"""The 8-bit products of 64-bit Arm: `sdot` of Armv8.2 for one row, and `smmla` of i8mm for two rows and two columns at once.

`sdot` sums four products into each of four int32 lanes, `smmla` eight into each of four; neither saturates.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from planish.codegen.tiles.float import Expr
from planish.codegen.tiles.int8 import DotAccumulator, Int8Tile, check_weights
from planish.targets.arm.float_tiles import NEON


def _products(instruction: str, sums: Expr, left: Expr, right: Expr) -> Expr:
    intrinsic = f"llvm.aarch64.neon.{instruction}.v4i32.v16i8"
    return T.bind(T.call_llvm_pure_intrin("int32x4", intrinsic, sums, left, right))


class _DotAccumulator(DotAccumulator):
    def __init__(self, initial: Expr) -> None:
        self._sums = initial

    def add(self, weights: Expr, activations: Expr) -> None:
        self._sums = _products("sdot", self._sums, weights, activations)

    def value(self) -> Expr:
        return self._sums


@dataclass(frozen=True)
class DotTile(Int8Tile):
    """`sdot`; with `matrices` also `smmla`."""

    matrices: bool = False

    @property
    def weight_range(self) -> tuple[int, int]:
        return -128, 127

    @property
    def taken(self) -> int:
        """A whole vector: the instruction itself takes one of its four parts."""
        return 16

    @property
    def repeats_loaded(self) -> bool:
        """`ld1r` takes a vector pipe besides one of those that load."""
        return False

    @property
    def inserts(self) -> bool:
        return True

    def insert(self, upper: Expr, lower: Expr, places: int) -> Expr:
        return T.call_llvm_pure_intrin("uint8x16", "llvm.aarch64.neon.vsri.v16i8", upper, lower, T.int32(places))

    @property
    def takes_bytes(self) -> bool:
        return True

    def accumulator(self, initial: Expr, weight_bound: int) -> DotAccumulator:
        check_weights(self, weight_bound)
        return _DotAccumulator(initial)

    @property
    def multiplies_pairs(self) -> bool:
        return self.matrices

    def add_pairs(self, sums: Expr, activations: Expr, weights: Expr) -> Expr:
        return (
            _products("smmla", sums, activations, weights)
            if self.matrices
            else super().add_pairs(sums, activations, weights)
        )


SMMLA = DotTile("smmla", 4, NEON, NEON.features | {"dotprod", "i8mm"}, matrices=True)
SDOT = DotTile("sdot", 4, NEON, NEON.features | {"dotprod"})

INT8_TILES: tuple[Int8Tile, ...] = (SMMLA, SDOT)
"""Every 8-bit tile of this target, best first."""
