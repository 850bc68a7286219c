"""The gated activation of an MLP: ``act(gate) * up``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.vectors import Row, Vector, for_rows
from planish.codegen.tiles.float import Expr, FloatTile

BLOCK = 1024
"""Elements of a row in one task, so that even one long row is shared out to the threads."""


def silu(x: Expr) -> Expr:
    """x / (1 + e^-x)."""
    x = math.hold(x)
    return x * math.sigmoid(x)


def gelu(x: Expr) -> Expr:
    """x * Phi(x)."""
    x = math.hold(x)
    return x * math.normal_cdf(x)


def gelu_tanh(x: Expr) -> Expr:
    """x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3), which is x * sigmoid(2 u).

    The sigmoid keeps its digits where 1 + tanh(u) cancels.
    """
    x = math.hold(x)
    twice = 2.0 * 0.7978845608028654
    factor = math.fma(x * x, math.constant(0.044715 * twice, x), math.constant(twice, x))
    return x * math.sigmoid(x * factor)


def relu(x: Expr) -> Expr:
    """The larger of x and 0; NaN stays."""
    x = math.hold(x)
    return tirx.Select(x < math.constant(0.0, x), math.constant(0.0, x), x)


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
}
"""The activations, as expressions of a float32 vector; they emit statements, like those of codegen.math."""


@dataclass(frozen=True)
class GatedActivation:
    """One gated activation kernel.

    Attributes:
        activation: a name in ACTIVATIONS.
        width: F, elements in a row of the result.
        tile: the machine's vectors.
        joined: whether gate and up are the two halves of one input (M, 2 F), gate first.
    """

    activation: str
    width: int
    tile: FloatTile
    joined: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"no kernel for the activation {self.activation!r}: use one of {', '.join(ACTIVATIONS)}")
        if self.width < 1:
            raise ValueError(f"a gated activation needs rows of at least one element, got {self.width}")


def gated_activation(config: GatedActivation) -> Any:
    """The PrimFunc ``(gate (M, F), up (M, F), y (M, F))``, or ``(both (M, 2 F), y (M, F))`` when joined; float32."""
    tile, width = config.tile, config.width
    blocks = -(-width // BLOCK)

    def body() -> None:
        rows = emit.symbol("rows")
        gate = emit.argument("gate", (rows, 2 * width if config.joined else width), "float32")
        up = gate if config.joined else emit.argument("up", (rows, width), "float32")
        y = emit.argument("y", (rows, width), "float32")
        up_column = width if config.joined else 0

        def at_block(task: Expr) -> None:
            row, block = task // blocks, task % blocks
            start = block * BLOCK

            def write(at: Vector) -> None:
                at.store(
                    y, ACTIVATIONS[config.activation](at.load(gate, row)) * at.load(up, row, column=up_column), row
                )

            def visit(columns: int) -> None:
                Row(tile, columns, start).for_vectors(write)

            last = width - (blocks - 1) * BLOCK
            emit.branch(True if blocks == 1 else block == blocks - 1, lambda: visit(last), lambda: visit(BLOCK))

        for_rows(rows * blocks, 8 * min(width, BLOCK), at_block)

    return emit.prim_func("gated_activation", body)
