"""Numbers that are loaded into every lane of a vector, such as those that integer sums start from.

Every load has a place of its own: where two vectors had one, a copy between registers would take a vector pipe's time. Where
a load that repeats a number takes it too, the number lies there as often as it is read, and loads overlap: each begins one
number after the one before.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import Expr
from planish.codegen.tiles.int8 import Int8Tile


class Repeated:
    """``count`` numbers of a dtype of four bytes, each of them for ``copies`` vectors."""

    def __init__(self, name: str, tile: Int8Tile, count: Expr | int, copies: int, dtype: str = "int32") -> None:
        self.tile = tile
        self.places = copies + (0 if tile.repeats_loaded else tile.lanes - 1)
        self.buffer = emit.scratch(name, count * self.places, dtype)

    def put(self, number: Expr, value: Expr) -> None:
        """Emit the stores of one number."""
        for place in range(self.places):
            T.buffer_store(self.buffer, value, [number * self.places + place])

    def get(self, number: Expr, copy: int = 0) -> Expr:
        """A vector of one number, the ``copy``-th of it."""
        at = number * self.places + copy
        if self.tile.repeats_loaded:
            return T.bind(T.broadcast(self.buffer[at], self.tile.lanes))
        return T.bind(emit.load(self.buffer, [at], self.tile.lanes))
