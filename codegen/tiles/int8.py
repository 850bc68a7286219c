"""What an integer kernel asks of a machine: the *instruction tile* of 8-bit products summed into int32 lanes.

Processors differ in the shape of that instruction (how many lanes, how many products a lane sums at once, whether it takes
one row of activations or two), and in whether sums can overflow on the way. A kernel family states its loops against
this interface and never names a processor; a target supplies the instance. The promise that matters: the sums are
exact, so their order is free, and results differ between tiles in nothing but speed.

Weights from 0 to 127 are the same bytes for instructions that take signed and unsigned ones; beyond that tiles differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from planish.codegen.tiles.float import Expr, FloatTile


class DotAccumulator(ABC):
    """Running sums of products, one int32 per lane: the state of one register of a register tile while it is emitted."""

    @abstractmethod
    def add(self, weights: Expr, activations: Expr) -> None:
        """Emit one step: lane l gains ``sum over d < depth of weights[l * depth + d] * activations[l * depth + d]``.

        Both are vectors of ``lanes * depth`` bytes: ``weights`` those of numbers in the tile's `weight_range`, typed as
        uint8, ``activations`` int8 in [-127, 127].
        """

    @abstractmethod
    def value(self) -> Expr:
        """The sums so far, a vector of int32."""


@dataclass(frozen=True)
class Int8Tile(ABC):
    """Dot products of 8-bit vectors and what surrounds them in registers.

    Attributes:
        name: how reports and test ids call this tile.
        depth: consecutive products that one lane sums in one step. An even number.
        floats: the float vectors of the same machine; one of their lanes stands over one int32 lane.
        features: the processor features the emitted instructions need, in the target's own vocabulary.
    """

    name: str
    depth: int
    floats: FloatTile
    features: frozenset[str]

    @property
    def lanes(self) -> int:
        """int32 lanes of an accumulator: output columns covered by one vector."""
        return self.floats.lanes

    @property
    def weight_range(self) -> tuple[int, int]:
        """The smallest and the largest weight."""
        return 0, 127

    @property
    def takes_bytes(self) -> bool:
        """Whether products with weights of all values of a byte, signed or unsigned, cost no more than others."""
        return False

    @property
    def taken(self) -> int:
        """Activations of a row that are best loaded at once: one step's, or more, of which a step takes its part."""
        return self.depth

    @property
    def repeats_loaded(self) -> bool:
        """Whether a load that puts one number into every lane costs no more than a plain one."""
        return True

    @property
    def inserts(self) -> bool:
        """Whether bytes are shifted by one instruction, and by one below the upper bits of others; see `insert`."""
        return False

    def insert(self, upper: Expr, lower: Expr, places: int) -> Expr:
        """The ``places`` highest bits of every byte of ``upper``, and below them the highest ones of ``lower``; uint8.

        Raises:
            ValueError: where there is no such instruction.
        """
        raise ValueError(f"the tile {self.name} inserts no bytes into others")

    @abstractmethod
    def accumulator(self, initial: Expr, weight_bound: int) -> DotAccumulator:
        """Sums that start from the int32 vector ``initial``; no weight added later exceeds ``weight_bound`` in magnitude.

        Raises:
            ValueError: when sums of weights that large would not be exact on this machine.
        """

    @property
    def multiplies_pairs(self) -> bool:
        """Whether there is an instruction that multiplies two rows at once; see `add_pairs`."""
        return False

    def add_pairs(self, sums: Expr, activations: Expr, weights: Expr) -> Expr:
        """``sums``, int32 (2 rows, lanes / 2 columns), plus products that are twice as deep as a dot product.

        ``activations`` is (2 rows, 2 * depth) int8 and ``weights`` (lanes / 2 columns, 2 * depth) uint8, both with the
        ranges of `DotAccumulator.add`.

        Raises:
            ValueError: where there is no such instruction.
        """
        raise ValueError(f"the tile {self.name} multiplies one row at a time")


def check_weights(tile: Int8Tile, bound: int) -> None:
    """Raise ValueError for weights of a magnitude that the tile does not take."""
    low, high = tile.weight_range
    if bound > max(-low, high):
        raise ValueError(f"the tile {tile.name} takes weights from {low} to {high}, not of {bound}")


def products(tile: Int8Tile) -> int:
    """Products of one instruction, of the kind that has most."""
    return tile.lanes * tile.depth * (2 if tile.multiplies_pairs else 1)
