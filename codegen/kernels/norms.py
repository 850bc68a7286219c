"""Normalisation of rows: RMS norm and layer norm, alone or behind a residual addition, and before their quantisation.

Statistics are those of the stored float32 values: the variance is the mean of the squared distances from the mean, in
a second pass over the row, since the difference of two large sums would lose what it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.quantize_activation import QuantizeActivation, RowQuantizer
from planish.codegen.kernels.vectors import Row, Vector, for_rows, padded
from planish.codegen.tiles.float import Expr, FloatTile


@dataclass(frozen=True)
class Norm:
    """One norm kernel.

    Attributes:
        width: D, elements in a row.
        epsilon: added to the mean square or the variance.
        tile: the machine's vectors.
        weight, bias: whether the kernel takes a float32 tensor (D,) that multiplies, or is added at last.
        residual: whether it takes a second input, normalises the sum of both, and also returns that sum.
        quantize: what quantises the normalised row, which then is no result; its features are `width`.
    """

    width: int
    epsilon: float
    tile: FloatTile
    weight: bool = True
    bias: bool = False
    residual: bool = False
    quantize: QuantizeActivation | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"a norm needs rows of at least one element, got {self.width}")


def arguments(config: Norm) -> tuple[Expr, ...]:
    """Rows, x, residual, weight, bias, total and y of the PrimFunc being emitted; None for those it does not have."""
    rows = emit.symbol("rows")

    def argument(name: str, taken: bool, *shape: Expr | int) -> Expr:
        return emit.argument(name, shape, "float32") if taken else None

    return (
        rows,
        argument("x", True, rows, config.width),
        argument("residual", config.residual, rows, config.width),
        argument("weight", config.weight, config.width),
        argument("bias", config.bias, config.width),
        argument("total", config.residual, rows, config.width),
        argument("y", config.quantize is None, rows, config.width),
    )


def rms_norm(config: Norm) -> Any:
    """The PrimFunc of ``y = x / sqrt(mean(x^2) + epsilon) * weight + bias`` over the rows of x.

    Its arguments: x (M, D), [residual (M, D)], [weight (D,)], [bias (D,)], [total (M, D)], y (M, D), all float32; with
    a residual, total is x + residual and takes the place of x. With `quantize`, the results of `quantize_activation` on y,
    codes (M, D) int8 and scale (M, 1), take the place of y.
    """
    return _norm("rms_norm", config, centred=False)


def layer_norm(config: Norm) -> Any:
    """The PrimFunc of ``y = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias``; arguments as in rms_norm."""
    return _norm("layer_norm", config, centred=True)


def _norm(name: str, config: Norm, centred: bool) -> Any:
    tile, width = config.tile, config.width

    def body() -> None:
        rows, x, residual, weight, bias, total, y = arguments(config)
        vectors, source = Row(tile, width), x if total is None else total
        quantizer = None
        if config.quantize is not None:
            codes = emit.argument("codes", (rows, width), "int8")
            quantizer = RowQuantizer(config.quantize, codes, emit.argument("scale", (rows, 1), "float32"))

        def at_row(row: Expr) -> None:
            if total is not None:
                vectors.for_vectors(lambda at: at.store(total, at.load(x, row) + at.load(residual, row), row))
            mean = None
            if centred:
                mean = math.hold(vectors.total(lambda sums, at: sums + at.load(source, row)) / T.float32(width))

            def value(at: Vector) -> Expr:
                loaded = at.load(source, row)
                return loaded if mean is None else at.within(loaded - tile.broadcast(mean), 0.0)

            def add_square(sums: Expr, at: Vector) -> Expr:
                held = math.hold(value(at))
                return tile.fma(held, held, sums)

            variance = vectors.total(add_square) / T.float32(width)
            scale = math.hold(T.float32(1) / math.sqrt(variance + T.float32(config.epsilon)))
            line = None if quantizer is None else emit.scratch("line", padded(width, tile.lanes))

            def write(at: Vector) -> None:
                result, factor = value(at), tile.broadcast(scale)
                if weight is not None:
                    result, factor = result * factor, at.load(weight)
                result = result * factor if bias is None else tile.fma(result, factor, at.load(bias))
                if line is None:
                    at.store(y, result, row)
                else:
                    at.whole.store(line, result)

            vectors.for_vectors(write)
            if quantizer is not None:
                quantizer.row(row, lambda column, count: emit.load(line, [column], count))

        for_rows(rows, width, at_row)

    parts = ["add"] * config.residual + [name] + ["quantize"] * (config.quantize is not None)
    return emit.prim_func("_".join(parts), body)
