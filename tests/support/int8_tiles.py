"""Tiles of 8-bit products as other machines have them, made of one of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.tiles.int8 import DotAccumulator, Int8Tile, check_weights


@dataclass(frozen=True)
class PairsTile(Int8Tile):
    """A tile that multiplies pairs of rows, as other machines do, made of one that multiplies one at a time."""

    inner: Int8Tile

    def accumulator(self, initial: Any, weight_bound: int) -> DotAccumulator:
        return self.inner.accumulator(initial, weight_bound)

    @property
    def multiplies_pairs(self) -> bool:
        return True

    def add_pairs(self, sums: Any, activations: Any, weights: Any) -> Any:
        lanes, half = self.lanes, self.lanes // 2
        # Twice as deep as a dot product: each column has two lanes.
        words = T.bind(T.reinterpret(f"int{8 * self.depth}x4", activations))
        of_rows = []
        for row in range(2):
            spread = tirx.Shuffle([words] * (lanes // 4), [T.int32(2 * row + lane % 2) for lane in range(lanes)])
            dots = self.inner.accumulator(T.broadcast(T.int32(0), lanes), 15)
            dots.add(weights, T.bind(T.reinterpret(f"int8x{lanes * self.depth}", spread)))
            of_rows.append(T.bind(dots.value()))
        even, odd = (
            tirx.Shuffle(
                of_rows, [T.int32(row * lanes + 2 * column + side) for row in range(2) for column in range(half)]
            )
            for side in range(2)
        )
        return T.bind(sums + even + odd)


class SignedAccumulator(DotAccumulator):
    """Sums of signed weights, made of unsigned ones that are 128 larger."""

    def __init__(self, inner: Int8Tile, initial: Any) -> None:
        self.bytes, zero = inner.lanes * inner.depth, T.broadcast(T.int32(0), inner.lanes)
        self.sums, self.excess = inner.accumulator(initial, 255), inner.accumulator(zero, 128)

    def add(self, weights: Any, activations: Any) -> None:
        highest = T.broadcast(T.uint8(128), self.bytes)
        self.sums.add(T.bind(T.bitwise_xor(weights, highest)), activations)
        self.excess.add(highest, activations)

    def value(self) -> Any:
        return T.bind(self.sums.value() - self.excess.value())


@dataclass(frozen=True)
class SignedTile(Int8Tile):
    """A tile of signed weights that inserts bytes into each other and loads no number into every lane, made of one that does
    none of it."""

    inner: Int8Tile

    @property
    def weight_range(self) -> tuple[int, int]:
        return -128, 127

    @property
    def takes_bytes(self) -> bool:
        return True

    def accumulator(self, initial: Any, weight_bound: int) -> DotAccumulator:
        check_weights(self, weight_bound)
        return SignedAccumulator(self.inner, initial)

    @property
    def inserts(self) -> bool:
        return True

    def insert(self, upper: Any, lower: Any, places: int) -> Any:
        size = self.lanes * self.depth
        kept = T.bitwise_and(upper, T.broadcast(T.uint8(256 - (256 >> places)), size))
        return T.bitwise_or(kept, T.shift_right(lower, T.broadcast(T.uint8(places), size)))

    @property
    def repeats_loaded(self) -> bool:
        return False
