"""The 8-bit dot products of x86-64: VNNI, and the pair of multiply-adds that came before it, at 512 and 256 bits.

All of them multiply unsigned by signed bytes, so weights are the unsigned operand and activations the signed one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from planish.codegen.tiles.float import Expr
from planish.codegen.tiles.int8 import DotAccumulator, Int8Tile, check_weights
from planish.targets.host.float_tiles import AVX2 as AVX2_FLOATS
from planish.targets.host.float_tiles import AVX512 as AVX512_FLOATS


class _VnniAccumulator(DotAccumulator):
    """One ``vpdpbusd`` a step: four products summed into each int32 lane, nothing saturating."""

    def __init__(self, initial: Expr, lanes: int) -> None:
        self._sums, self._lanes = initial, lanes

    def add(self, weights: Expr, activations: Expr) -> None:
        intrinsic = f"llvm.x86.avx512.vpdpbusd.{32 * self._lanes}"
        sums = T.call_llvm_pure_intrin(f"int32x{self._lanes}", intrinsic, self._sums, weights, activations)
        self._sums = T.bind(sums)

    def value(self) -> Expr:
        return self._sums


@dataclass(frozen=True)
class VnniTile(Int8Tile):
    """``vpdpbusd``. LLVM encodes its 256-bit form for AVX-VNNI or for AVX-512, whichever the compilation target has."""

    @property
    def weight_range(self) -> tuple[int, int]:
        return 0, 255

    @property
    def takes_bytes(self) -> bool:
        return True

    def accumulator(self, initial: Expr, weight_bound: int) -> DotAccumulator:
        check_weights(self, weight_bound)
        return _VnniAccumulator(initial, self.lanes)


_PAIR_INTRINSICS = {
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}
"""Lanes to the instructions that multiply bytes and words and sum the products of neighbours."""


class _PairAccumulator(DotAccumulator):
    """``vpmaddubsw`` sums two products into an int16 that saturates, so only as many steps stay there as surely fit."""

    def __init__(self, initial: Expr, lanes: int, steps_in_int16: int) -> None:
        self._sums, self._lanes, self._limit = initial, lanes, steps_in_int16
        self._bytes, self._words = _PAIR_INTRINSICS[lanes]
        self._pairs: Expr | None = None
        self._steps = 0

    def add(self, weights: Expr, activations: Expr) -> None:
        if self._steps == self._limit:
            self._widen()
        pairs = T.call_llvm_pure_intrin(f"int16x{2 * self._lanes}", self._bytes, weights, activations)
        self._pairs = T.bind(pairs if self._pairs is None else self._pairs + pairs)
        self._steps += 1

    def _widen(self) -> None:
        if self._pairs is not None:
            ones = T.broadcast(T.int16(1), 2 * self._lanes)
            widened = T.call_llvm_pure_intrin(f"int32x{self._lanes}", self._words, self._pairs, ones)
            self._sums = T.bind(self._sums + widened)
        self._pairs, self._steps = None, 0

    def value(self) -> Expr:
        self._widen()
        return self._sums


class _WordAccumulator(DotAccumulator):
    """Bytes of even and of odd places as words, whose products ``vpmaddwd`` sums into int32 at once: for weights whose pairs
    int16 does not hold."""

    def __init__(self, initial: Expr, lanes: int) -> None:
        self._sums, self._lanes = initial, lanes
        _, self._words = _PAIR_INTRINSICS[lanes]

    def add(self, weights: Expr, activations: Expr) -> None:
        kind = f"x{2 * self._lanes}"
        byte = T.broadcast(T.int16(8), 2 * self._lanes)
        w, x = T.reinterpret(f"uint16{kind}", weights), T.reinterpret(f"int16{kind}", activations)
        even = T.bitwise_and(w, T.broadcast(T.uint16(255), 2 * self._lanes))
        odd = T.shift_right(w, T.broadcast(T.uint16(8), 2 * self._lanes))
        for of_weights, of_activations in (
            (even, T.shift_right(T.shift_left(x, byte), byte)),
            (odd, T.shift_right(x, byte)),
        ):
            factors = T.reinterpret(f"int16{kind}", of_weights), of_activations
            summed = T.call_llvm_pure_intrin(f"int32x{self._lanes}", self._words, *factors)
            self._sums = T.bind(self._sums + summed)

    def value(self) -> Expr:
        return self._sums


@dataclass(frozen=True)
class PairTile(Int8Tile):
    """``vpmaddubsw`` and ``vpmaddwd``, for processors without VNNI."""

    @property
    def weight_range(self) -> tuple[int, int]:
        return 0, 255

    def accumulator(self, initial: Expr, weight_bound: int) -> DotAccumulator:
        check_weights(self, weight_bound)
        # -128 is counted as a possible activation: exactness must not hang on how they were clamped.
        steps = 32767 // (2 * 128 * weight_bound)
        return _PairAccumulator(initial, self.lanes, steps) if steps else _WordAccumulator(initial, self.lanes)


AVX512_VNNI = VnniTile(
    name="avx512-vnni",
    depth=4,
    floats=AVX512_FLOATS,
    features=AVX512_FLOATS.features | {"avx512bw", "avx512vnni"},
)
AVX512_PAIRS = PairTile(
    name="avx512-pairs",
    depth=4,
    floats=AVX512_FLOATS,
    features=AVX512_FLOATS.features | {"avx512bw"},
)
AVX_VNNI = VnniTile(
    name="avx-vnni",
    depth=4,
    floats=AVX2_FLOATS,
    features=AVX2_FLOATS.features | {"avxvnni"},
)
AVX2_PAIRS = PairTile(
    name="avx2-pairs",
    depth=4,
    floats=AVX2_FLOATS,
    features=AVX2_FLOATS.features,
)

INT8_TILES: tuple[Int8Tile, ...] = (AVX512_VNNI, AVX512_PAIRS, AVX_VNNI, AVX2_PAIRS)
"""Every 8-bit tile of this target, widest first."""
