"""The 8-bit dot products of 64-bit Arm: `sdot` of Armv8.2, and `usdot`, which came with the matrix multiplications of i8mm.

Both sum four products into each int32 lane without saturating. `usdot` takes weights as they are stored, unsigned;
`sdot` wants them signed.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from planish.codegen.tiles.float import Expr
from planish.codegen.tiles.int8 import DotAccumulator, Int8Tile
from planish.targets.arm.float_tiles import NEON


class _DotAccumulator(DotAccumulator):
    def __init__(self, initial: Expr, intrinsic: str) -> None:
        self._sums, self._intrinsic = initial, f"llvm.aarch64.neon.{intrinsic}.v4i32.v16i8"

    def add(self, weights: Expr, activations: Expr) -> None:
        self._sums = T.bind(T.call_llvm_pure_intrin("int32x4", self._intrinsic, self._sums, weights, activations))

    def value(self) -> Expr:
        return self._sums


@dataclass(frozen=True)
class DotTile(Int8Tile):
    """One dot-product instruction a step; `intrinsic` is its name."""

    intrinsic: str = "sdot"

    @property
    def taken(self) -> int:
        """A whole vector: the instruction itself takes one of its four parts."""
        return 16

    def scaled(self, sums: Expr, power: int) -> Expr:
        """The conversion divides by itself."""
        if not power:
            return super().scaled(sums, power)
        return T.call_llvm_pure_intrin("float32x4", "llvm.aarch64.neon.vcvtfxs2fp.v4f32.v4i32", sums, T.int32(power))

    def accumulator(self, initial: Expr, weight_bound: int) -> DotAccumulator:
        limit = 255 if self.unsigned_weights else 128
        if weight_bound > limit:
            raise ValueError(f"the tile {self.name} takes weights up to {limit}, not {weight_bound}")
        return _DotAccumulator(initial, self.intrinsic)


USDOT = DotTile("usdot", 4, True, NEON, NEON.features | {"i8mm"}, "usdot")
SDOT = DotTile("sdot", 4, False, NEON, NEON.features | {"dotprod"}, "sdot")

INT8_TILES: tuple[Int8Tile, ...] = (USDOT, SDOT)
"""Every 8-bit tile of this target, best first."""
