"""Dynamic quantisation with a row to a block; the bits of `kernels/quantize_activation.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.rows import RowBlock, threads_for
from planish.codegen.kernels.quantize_activation import QuantizeActivation
from planish.codegen.simt.block import Block
from planish.codegen.tiles.float import Expr


def quantize_activation(config: QuantizeActivation) -> Any:
    """The PrimFunc of `kernels.quantize_activation.quantize_activation`: the same arguments, the same results."""
    features, threads = config.features, threads_for(config.features)

    def body() -> None:
        rows = emit.symbol("rows")
        x = emit.argument("x", (rows, features), "float32")
        codes = emit.argument("codes", (rows, features), "int8")
        scales = emit.argument("scale", (rows, 1), "float32")

        def at_row(block: Block) -> None:
            (row,), along = block.index, RowBlock(block, features)
            quantize_row(block, along, row, lambda k: x[row, k], codes, scales, config.largest)

        emit.launch((rows,), threads, at_row, RowBlock.shared_bytes(threads, ("int32",)))

    return emit.prim_func("quantize_activation", body)


def quantize_row(
    block: Block, along: RowBlock, row: Expr, value: Callable[[Expr], Expr], codes: Expr, scales: Expr, top: int
) -> None:
    """Emit the codes and the scale of a row of which `value(k)` gives elements, the largest code being `top`."""

    # Magnitudes compare as their bits do, which orders NaN last.
    def magnitude(k: Expr) -> Expr:
        return T.bitwise_and(T.reinterpret("int32", value(k)), T.int32(0x7FFFFFFF))

    largest = along.fold("largest", T.int32(0), T.max, magnitude)
    with block.phase() as thread:
        scale = math.hold(T.reinterpret("float32", largest[0]) / T.float32(top))
        emit.branch(thread < 1, lambda: T.buffer_store(scales, scale, [row, 0]))

        def quotient(k: Expr) -> None:
            T.buffer_store(codes, _code(math.hold(value(k) / scale), top), [row, k])

        emit.branch(
            T.And(T.float32(0) < scale, scale < T.infinity("float32")),
            lambda: along.each(thread, quotient),
            lambda: along.each(thread, lambda k: T.buffer_store(codes, T.int8(0), [row, k])),
        )


def _code(quotient: Expr, largest: int) -> Expr:
    """A finite quotient, rounded and clamped, as int8."""
    rounded = math.hold(current().round_even(quotient))
    low, high = (T.float32(sign * largest) for sign in (-1, 1))
    return T.cast(T.cast(T.max(T.min(rounded, high), low), "int32"), "int8")
