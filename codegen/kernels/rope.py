"""Rotary position embedding: each pair of elements of a head turned by an angle that grows with the position.

The angle is position * inv_freq[j], rounded to float32 as the reference models do; its cosine and sine are exact to two
units in the last place for positions up to codegen.math.ANGLE_LIMIT. They are computed once for a token and serve all
of its heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.vectors import Row, Vector, for_rows, padded
from planish.codegen.pointwise.loops import unravel
from planish.codegen.tiles.float import Expr, FloatTile

STYLES = ("half", "interleaved")


@dataclass(frozen=True)
class Rope:
    """One rotary embedding kernel.

    Attributes:
        heads, size: H and D.
        pairs: frequencies; the first 2 * pairs elements of a head are turned, the rest passes through.
        style: pair j is (j, j + pairs) in "half", (2 j, 2 j + 1) in "interleaved".
        scale: multiplies cosine and sine.
        tile: the machine's vectors.
    """

    heads: int
    size: int
    pairs: int
    style: str
    scale: float
    tile: FloatTile

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"no kernel for rotary embeddings of style {self.style!r}: use one of {', '.join(STYLES)}")
        if not 0 < 2 * self.pairs <= self.size:
            raise ValueError(
                f"{self.pairs} frequencies must turn at least one and at most {self.size} elements of a head"
            )


def rope(config: Rope) -> Any:
    """The PrimFunc ``(x (B, S, H, D), positions int64 (B, S), inv_freq (pairs,), y (B, S, H, D))``, float32."""
    tile, half = config.tile, config.style == "half"
    turned = 2 * config.pairs

    def body() -> None:
        batch, length = emit.symbol("batch"), emit.symbol("length")
        shape = (batch, length, config.heads, config.size)
        x = emit.argument("x", shape, "float32")
        positions = emit.argument("positions", (batch, length), "int64")
        inv_freq = emit.argument("inv_freq", (config.pairs,), "float32")
        y = emit.argument("y", shape, "float32")
        if current().fine_grained:
            _by_pair(config, x, positions, inv_freq, y, batch, length)
            return

        def at_token(token: Expr) -> None:
            b, s = token // length, token % length
            cosines, sines = (emit.scratch(name, padded(turned, tile.lanes)) for name in ("cosines", "sines"))
            position = math.hold(T.cast(positions[b, s], "float32"))

            def turn(at: Vector) -> None:
                angle = math.hold(at.load(inv_freq) * tile.broadcast(position))
                scale = tile.broadcast(T.float32(config.scale))
                at.whole.store(cosines, math.cos(angle) * scale)
                at.whole.store(sines, math.sin(angle) * scale)

            Row(tile, config.pairs).for_vectors(turn)
            if not half:
                _spread(cosines, sines, config.pairs)
            with emit.loop("head", config.heads) as head:
                if half:
                    _turn_halves(config, x, y, cosines, sines, b, s, head)
                else:
                    _turn_neighbours(config, x, y, cosines, sines, b, s, head)
                rest = Row(tile, config.size - turned, turned)
                rest.for_vectors(lambda at: at.store(y, at.load(x, b, s, head), b, s, head))

        for_rows(batch * length, config.heads * config.size, at_token)

    return emit.prim_func("rope", body)


def _by_pair(config: Rope, x: Expr, positions: Expr, inv_freq: Expr, y: Expr, batch: Expr, length: Expr) -> None:
    """One pair of one head to a task, its angle computed anew; the elements that are not turned follow the pairs."""
    pairs, rest = config.pairs, config.size - 2 * config.pairs
    with emit.tasks("pair", batch * length * config.heads * (pairs + rest)) as number:
        b, s, head, j = unravel(number, [batch, length, config.heads, pairs + rest])

        def turn() -> None:
            angle = math.hold(inv_freq[j] * math.hold(T.cast(positions[b, s], "float32")))
            cosine, sine = (math.hold(f(angle) * T.float32(config.scale)) for f in (math.cos, math.sin))
            first, second = (j, j + pairs) if config.style == "half" else (2 * j, 2 * j + 1)
            one, other = math.hold(x[b, s, head, first]), math.hold(x[b, s, head, second])
            T.buffer_store(y, math.fma(one, cosine, T.float32(0) - math.hold(other * sine)), [b, s, head, first])
            T.buffer_store(y, math.fma(other, cosine, math.hold(one * sine)), [b, s, head, second])

        def keep() -> None:
            T.buffer_store(y, x[b, s, head, j + pairs], [b, s, head, j + pairs])

        emit.branch(j < pairs, turn, keep if rest else None)


def _turn_halves(config: Rope, x: Expr, y: Expr, cosines: Expr, sines: Expr, *head: Expr) -> None:
    tile = config.tile

    def write(at: Vector) -> None:
        upper = Vector(tile, at.column + config.pairs, at.count)
        a, b = math.hold(at.load(x, *head)), math.hold(upper.load(x, *head))
        cosine, sine = math.hold(at.whole.load(cosines)), math.hold(at.whole.load(sines))
        at.store(y, tile.fma(a, cosine, tile.broadcast(T.float32(0)) - b * sine), *head)
        upper.store(y, tile.fma(b, cosine, a * sine), *head)

    Row(tile, config.pairs).for_vectors(write)


def _spread(cosines: Expr, sines: Expr, pairs: int) -> None:
    """Give each element of a pair its own cosine, and its sine with the sign it takes there."""
    with emit.loop("pair", pairs) as pair:
        # From the last to the first: an entry is read before anything is written over it.
        j = pairs - 1 - pair
        cosine, sine = math.hold(cosines[j]), math.hold(sines[j])
        for side, sign in ((0, -1.0), (1, 1.0)):
            T.buffer_store(cosines, cosine, [2 * j + side])
            T.buffer_store(sines, sine * T.float32(sign), [2 * j + side])


def _turn_neighbours(config: Rope, x: Expr, y: Expr, cosines: Expr, sines: Expr, *head: Expr) -> None:
    tile = config.tile
    exchange = [T.int32(lane ^ 1) for lane in range(tile.lanes)]

    def write(at: Vector) -> None:
        value = math.hold(at.load(x, *head))
        partner = tirx.Shuffle([value], exchange)
        at.store(y, tile.fma(value, at.whole.load(cosines), partner * at.whole.load(sines)), *head)

    Row(tile, 2 * config.pairs).for_vectors(write)
