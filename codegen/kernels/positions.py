"""Positions of tokens when some of a row are padding: a running count of the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import Expr

MASKS = ("bool", "int64")


@dataclass(frozen=True)
class Positions:
    """One positions kernel.

    Attributes:
        mask: dtype of the padding mask, in which nonzero marks a real token.
        start: whether rows begin at positions of their own.
        padding_value: the position of padding.
    """

    mask: str
    start: bool
    padding_value: int

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise ValueError(f"a padding mask cannot be {self.mask}: use one of {', '.join(MASKS)}")


def positions(config: Positions) -> Any:
    """The PrimFunc ``([start int64 (B,)], padding (B, S), y int64 (B, S))``.

    The n-th real token of row b gets start[b] + n - 1.
    """

    def body() -> None:
        batch, length = emit.symbol("batch"), emit.symbol("length")
        start = emit.argument("start", (batch,), "int64") if config.start else None
        padding = emit.argument("padding", (batch, length), config.mask)
        y = emit.argument("y", (batch, length), "int64")

        def row(b: Expr) -> None:
            following = emit.scratch("following", 1, "int64")
            T.buffer_store(following, emit.index(0) if start is None else start[b], [0])

            def place(s: Expr) -> None:
                T.buffer_store(y, following[0], [b, s])
                T.buffer_store(following, following[0] + 1, [0])

            with emit.loop("s", length) as s:
                real = padding[b, s] if config.mask == "bool" else padding[b, s] != emit.index(0)
                emit.branch(real, lambda: place(s), lambda: T.buffer_store(y, emit.index(config.padding_value), [b, s]))

        emit.some_tasks("b", batch, True, row)

    return emit.prim_func("positions", body)
