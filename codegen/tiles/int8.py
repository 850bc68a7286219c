"""What an integer kernel asks of a machine: the *instruction tile* of 8-bit dot products summed into int32 lanes.

Processors differ in the shape of that instruction (how many lanes, how many products a lane sums at once), in whether
the weights must be unsigned, and in whether sums can overflow on the way. A kernel family states its loops against
this interface and never names a processor; a target supplies the instance. The promise that matters: the sums are
exact, so their order is free, and results differ between tiles in nothing but speed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from planish.codegen.tiles.float import Expr, FloatTile


class DotAccumulator(ABC):
    """Running sums of products, one int32 per lane: the state of one register of a register tile while it is emitted."""

    @abstractmethod
    def add(self, weights: Expr, activations: Expr) -> None:
        """Emit one step: lane l gains ``sum over d < depth of weights[l * depth + d] * activations[l * depth + d]``.

        Both are vectors of ``lanes * depth`` bytes: ``weights`` uint8 or int8 as the tile's ``unsigned_weights`` says,
        ``activations`` int8 in [-127, 127].
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
        unsigned_weights: whether the weight operand is uint8 (activations are int8 always).
        floats: the float vectors of the same machine; one of their lanes stands over one int32 lane.
        features: the processor features the emitted instructions need, in the target's own vocabulary.
    """

    name: str
    depth: int
    unsigned_weights: bool
    floats: FloatTile
    features: frozenset[str]

    @property
    def lanes(self) -> int:
        """int32 lanes of an accumulator: output columns covered by one vector."""
        return self.floats.lanes

    @property
    def taken(self) -> int:
        """Activations of a row that are best loaded at once: one step's, or more, of which a step takes its part."""
        return self.depth

    def scaled(self, sums: Expr, power: int) -> Expr:
        """``sums / 2^power`` as float32, for sums that float32 holds."""
        floats = T.cast(sums, f"float32x{self.lanes}")
        return floats * self.floats.broadcast(T.float32(2.0**-power)) if power else floats

    @abstractmethod
    def accumulator(self, initial: Expr, weight_bound: int) -> DotAccumulator:
        """Sums that start from the int32 vector ``initial``; no weight added later exceeds ``weight_bound`` in magnitude.

        A bound of 128 means weights down to -128 where they are signed.

        Raises:
            ValueError: when sums of weights that large would not be exact on this machine.
        """
