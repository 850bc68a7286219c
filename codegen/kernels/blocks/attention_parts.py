"""Attention whose keys are cut in parts: what each part leaves behind, and the launch that combines it."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.attention import Attention, Operands
from planish.codegen.kernels.blocks.attention_rows import (
    QUAD,
    THREADS,
    finite,
    int32,
    int64,
    lane_of,
    launch,
    minus_infinity,
)
from planish.codegen.simt.block import WARP, Block, rounded_bytes, warp_total
from planish.codegen.tiles.float import Expr


class Partials:
    """For every row and part of its keys: the largest score, the sum of the weights, the weighted sum of the values."""

    def __init__(self, config: Attention, operands: Operands, parts: Expr) -> None:
        self.config, self.operands, self.parts = config, operands, parts
        self.width = config.value_size + 2
        rows = operands.batch * config.kv_heads * operands.length * config.group
        self.memory = emit.scratch("partials", rows * parts * self.width)

    def place(self, b: Expr, head: Expr, row: Expr, part: Expr) -> Expr:
        """Where the largest score stands; the sum and the values follow."""
        rows = self.operands.length * self.config.group
        return (((b * self.config.kv_heads + head) * rows + row) * self.parts + part) * self.width

    def store(self, place: Expr, offset: Expr | int, value: Expr) -> None:
        T.buffer_store(self.memory, value, [place + offset])


def quotient(value: Expr, total: Expr) -> Expr:
    """`value / total`, 0 where nothing was seen; plus zero gives a zero the sign it has without the blocks passed over."""
    value = math.fma(value / total, T.float32(1), T.float32(0))
    return tirx.Select(tirx.EQ(total, T.float32(0)), T.float32(0), value)


def combine(partials: Partials) -> None:
    """Emit the launch that makes y of the partials, with a block to a query and head; there are at most WARP parts.

    The parts' values are added one after another, from the first part on.
    """
    config, operands, size = partials.config, partials.operands, partials.config.value_size

    def body(block: Block) -> None:
        number, b = block.index
        query, head = number // config.heads, number % config.heads
        row = query * config.group + head % config.group
        first = emit.bind("first", partials.place(b, head // config.group, row, emit.index(0)))
        parts = emit.bind("parts", partials.parts)
        factors = block.shared("factors", WARP)
        largest, top, total, factor = (block.registers(n, 1) for n in ("largest", "top", "total", "factor"))
        with block.phase() as thread:
            lane = int64(lane_of(thread, WARP)[0])
            at = first + T.min(lane, parts - 1) * partials.width
            largest[0] = tirx.Select(lane < parts, partials.memory[at], minus_infinity())
            top[0] = largest[0]
        warp_total(block, top, math.maximum)
        with block.phase() as thread:
            lane = int64(lane_of(thread, WARP)[0])
            if operands.sinks is not None:
                top[0] = math.maximum(top[0], math.hold(operands.sinks[head]))
            top[0] = finite(top[0])
            factor[0] = math.exp_nonpositive(largest[0] - top[0])
            total[0] = partials.memory[first + T.min(lane, parts - 1) * partials.width + 1] * factor[0]
            emit.branch(thread < WARP, lambda: T.buffer_store(factors, factor[0], [thread]))
        warp_total(block, total, lambda a, b: a + b)
        block.barrier()
        with block.phase() as thread:
            if operands.sinks is not None:
                total[0] = total[0] + math.exp_nonpositive(math.hold(operands.sinks[head]) - top[0])
            with T.serial(T.int32(-(-size // THREADS))) as step:
                column = step * THREADS + thread

                def write() -> None:
                    output = emit.registers("output", 1)
                    T.buffer_store(output, T.float32(0), [0])
                    with emit.loop("batch_of_parts", emit.ceil_div(parts, QUAD)) as batch:
                        # Parts past the last have weight zero; the last one stands for them.
                        for n in range(QUAD):
                            part = batch * QUAD + n
                            value = partials.memory[first + T.min(part, parts - 1) * partials.width + 2 + int64(column)]
                            T.buffer_store(output, math.fma(factors[int32(part)], value, output[0]), [0])
                    result = quotient(output[0], total[0])
                    T.buffer_store(operands.y, result, [b, query, head, int64(column)])

                emit.branch(column < size, write)

    launch((operands.length * config.heads, operands.batch), body, rounded_bytes(WARP, "float32"))
