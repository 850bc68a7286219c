"""Softmax over rows: ``y = exp(x - max(x)) / sum(exp(x - max(x)))``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.vectors import Row, Vector, for_rows
from planish.codegen.tiles.float import Expr, FloatTile


@dataclass(frozen=True)
class Softmax:
    """One softmax kernel.

    Attributes:
        width: elements in a row, or None when only the call knows it.
        tile: the machine's vectors.
    """

    width: int | None
    tile: FloatTile

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(f"a softmax needs rows of at least one element, got {self.width}")


def softmax(config: Softmax) -> Any:
    """The PrimFunc ``(x (M, N), y (M, N))``, float32. A row with +inf or NaN, or of -inf alone, gives NaN, as in torch."""
    tile = config.tile

    def body() -> None:
        rows = emit.symbol("rows")
        width = emit.symbol("width") if config.width is None else config.width
        x = emit.argument("x", (rows, width), "float32")
        y = emit.argument("y", (rows, width), "float32")
        vectors = Row(tile, width)

        def at_row(row: Expr) -> None:
            largest = tile.broadcast(vectors.largest(lambda at: at.within(at.load(x, row), float("-inf"))))

            def add_power(sums: Expr, at: Vector) -> Expr:
                power = math.hold(math.exp_nonpositive(at.load(x, row) - largest))
                at.store(y, power, row)
                return sums + at.within(power, 0.0)

            divisor = tile.broadcast(vectors.total(add_power))
            vectors.for_vectors(lambda at: at.store(y, at.load(y, row) / divisor, row))

        for_rows(rows, 8 * width, at_row)

    return emit.prim_func("softmax", body)
