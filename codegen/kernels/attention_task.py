"""What one thread does for some rows of an attention: the walk over blocks of keys, and the steps at each block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.attention_factors import RowFactors
from planish.codegen.kernels.attention_range import VisibleRange
from planish.codegen.kernels.attention_scores import Scores, Subtile
from planish.codegen.kernels.float_gemm import Step, register_tile
from planish.codegen.kernels.vectors import Row, Vector, across, padded
from planish.codegen.tiles.float import Expr

if TYPE_CHECKING:
    from planish.codegen.kernels.attention import Attention, Operands

MINUS_INFINITY = float("-inf")


class AttentionTask(VisibleRange):
    """Rows ``first .. first + task_rows - 1`` of key-value head ``head`` of batch row ``b``.

    Row r is query r // group, head r % group of those that share the key-value head. The state of a row between blocks:
    ``largest``, the largest score so far, ``sums``, one vector of partial sums of the weights, and ``outputs``, the
    weighted sum of values, both relative to exp(largest).
    """

    def __init__(self, config: Attention, operands: Operands, b: Expr, head: Expr, first: Expr) -> None:
        self.config, self.operands, self.tile = config, operands, config.tile
        self.b, self.head = b, head
        self.total = operands.length * config.group
        self.first = emit.bind("first", first)
        self.count = emit.bind("count", T.min(self.total - self.first, emit.index(config.task_rows)))
        self.start = emit.bind("start", operands.start[b] if operands.start is not None else emit.index(0))
        keys = operands.capacity
        if operands.kv_length is not None:
            keys = T.min(operands.kv_length[b], keys)
        self.keys = emit.bind("keys", keys)
        width, lanes = config.padded_value_size, config.tile.lanes
        self.outputs = emit.scratch("outputs", config.task_rows * width)
        self.largest = emit.scratch("largest", config.task_rows + lanes)
        self.sums = emit.scratch("sums", config.task_rows * lanes)
        self.weights = emit.scratch("weights", config.rows * config.block)
        self.raised = emit.scratch("raised", padded(config.rows, lanes))
        self.corrections = emit.scratch("corrections", padded(config.rows, lanes))
        self.seen = emit.scratch("seen", config.block, "int32") if config.padding else None
        self.turned = emit.scratch("turned", config.block * config.size) if config.shared else None
        values = RowFactors.of(config.values_layout, operands.v, config.block)
        self.value_factors = values
        self.key_factors = values if config.shared else RowFactors.of(config.keys_layout, operands.k, config.block)

    def run(self) -> None:
        """Emit the task."""
        block = self.config.block
        self._begin()
        last = self.position(self.first + self.count - 1)
        first_block = emit.bind("first_block", self.lowest(self.position(self.first)) // block)
        blocks = T.max(emit.ceil_div(self.end(last), block) - first_block, emit.index(0))
        with emit.loop("block", blocks) as number:
            base = emit.bind("base", (first_block + number) * block)
            if self.seen is not None:
                self._flag_keys(base)
            for factors in dict.fromkeys((self.key_factors, self.value_factors)):
                if factors is not None:
                    factors.fill(self, base)
            if self.turned is not None:
                self._turn_keys(base)
            with emit.loop("subtile", emit.ceil_div(self.count, self.config.rows)) as subtile:
                self._visit(Subtile(self, subtile * self.config.rows, base))
        self._finish()

    def _begin(self) -> None:
        lanes, width = self.tile.lanes, self.config.padded_value_size
        zero = self.tile.broadcast(T.float32(0))
        with emit.loop("row", self.count) as row:
            with emit.loop("vector", width // lanes) as vector:
                emit.store(self.outputs, [row * width + vector * lanes], zero, lanes)
            emit.store(self.sums, [row * lanes], zero, lanes)
            if self.operands.sinks is None:
                T.buffer_store(self.largest, T.float32(MINUS_INFINITY), [row])
            else:
                # The sink is a key of weight exp(sink - sink) = 1 without a value.
                sink = math.hold(self.operands.sinks[self.query_head(self.first + row)])
                T.buffer_store(self.largest, sink, [row])
                weight = tirx.Select(sink > T.float32(MINUS_INFINITY), T.float32(1), T.float32(0))
                T.buffer_store(self.sums, weight, [row * lanes])

    def _flag_keys(self, base: Expr) -> None:
        assert self.seen is not None
        with emit.loop("key", self.config.block) as key:
            inside = base + key < self.operands.capacity
            flag = T.if_then_else(inside, T.cast(self.operands.padding[self.b, base + key], "int32"), T.int32(0))
            T.buffer_store(self.seen, flag, [key])

    def _turn_keys(self, base: Expr) -> None:
        """The keys of a block as panels in ``turned``: element e of key k of panel p at (p * size + e) * lanes + k."""
        config, lanes, turned = self.config, self.tile.lanes, self.turned
        square = emit.scratch("square", lanes * lanes)
        with emit.loop("panel", config.block_vectors) as panel, emit.loop("piece", -(-config.size // lanes)) as piece:
            with emit.unrolled("key", lanes) as key:
                # Places past the last are masked later: any key stands for them.
                place = T.min(base + panel * lanes + key, self.operands.capacity - 1)
                row = config.values_layout.read(self.tile, self.operands.v, self.b, self.head, place, piece * lanes)
                if self.value_factors is not None:
                    row = self.value_factors.from_zero(row, panel * lanes + key, self.tile)
                emit.store(square, [key * lanes], row, lanes)
            with emit.loop("element", T.min(config.size - piece * lanes, emit.index(lanes))) as element:
                row = (panel * config.size + piece * lanes + element) * lanes
                with emit.unrolled("key", lanes) as key:
                    T.buffer_store(turned, square[key * lanes + element], [row + key])

    def _visit(self, subtile: Subtile) -> None:
        """Emit what one block does to the rows of one subtile, if any of them sees any of it."""

        def steps() -> None:
            scores = Scores(self, subtile)
            scores.products()
            scores.largest()
            scores.exponentials()
            self._add_values(subtile)

        emit.branch(subtile.sees_some, steps)

    def _add_values(self, subtile: Subtile) -> None:
        """outputs = outputs * correction + weights @ values, over the keys that some row of the subtile sees."""
        config, lanes, width = self.config, self.tile.lanes, self.config.padded_value_size
        begin = emit.bind("begin", T.max(subtile.lowest - subtile.base, emit.index(0)))
        end = T.min(subtile.end - subtile.base, emit.index(config.block))
        steps = emit.bind("steps", end - begin)

        def chunk(height: int, vector: Expr | int, vectors: int) -> None:
            def place(x: Expr, v: Expr) -> list[Expr]:
                return [(subtile.row + x) * width + (vector + v) * lanes]

            def corrected(x: Expr, v: Expr) -> Expr:
                return emit.load(self.outputs, place(x, v), lanes) * self.tile.broadcast(self.corrections[x])

            def sweep(step: Step) -> None:
                with emit.loop("key", steps) as number:
                    key = begin + number
                    if height in config.streaming_heights:
                        ahead = subtile.base + key + config.block
                        # Codes of several vectors share a line of the processor's caches.
                        with emit.unrolled("v", vectors if config.value_codes is None else 1) as v:
                            at = config.values_layout.vector(self.b, self.head, ahead, (vector + v) * lanes)
                            emit.prefetch(self.operands.v, at)
                    step(
                        lambda x: self.weights[x * config.block + key],
                        lambda v: self._value(subtile.base + key, key, (vector + v) * lanes),
                    )

            def store(x: Expr, v: Expr, value: Expr, last: bool) -> None:
                emit.store(self.outputs, place(x, v), value, lanes)

            register_tile(self.tile, height, vectors, sweep, corrected, store, first=False)

        def at_height(height: int) -> None:
            whole, rest = divmod(width // lanes, config.value_vectors)
            with emit.loop("chunk", whole) as number:
                chunk(height, number * config.value_vectors, config.value_vectors)
            if rest:
                chunk(height, whole * config.value_vectors, rest)

        subtile.at_height(at_height)

    def _value(self, place: Expr, key: Expr, element: Expr) -> Expr:
        value = self.config.values_layout.read(self.tile, self.operands.v, self.b, self.head, place, element)
        if self.value_factors is not None:
            value = self.value_factors.from_zero(value, key, self.tile)
        if self.seen is not None:
            # A padded key may hold NaN, which a weight of zero would not silence.
            value = tirx.Select(
                T.broadcast(self.seen[key] != 0, self.tile.lanes), value, self.tile.broadcast(T.float32(0))
            )
        return value

    def _finish(self) -> None:
        lanes, width = self.tile.lanes, self.config.padded_value_size
        zero, one = (self.tile.broadcast(T.float32(value)) for value in (0, 1))
        with emit.loop("row", self.count) as row:
            query = emit.bind("query", (self.first + row) // self.config.group)
            head = emit.bind("head", self.query_head(self.first + row))
            total = math.hold(across(emit.load(self.sums, [row * lanes], lanes), lambda a, b: a + b))

            def write(at: Vector) -> None:
                value = emit.load(self.outputs, [row * width + at.column], lanes) / self.tile.broadcast(total)
                # The sign of a zero may depend on the blocks passed over; plus zero has one sign.
                value = self.tile.fma(value, one, zero)
                empty = T.broadcast(tirx.EQ(total, T.float32(0)), lanes)
                at.store(self.operands.y, tirx.Select(empty, zero, value), self.b, query, head)

            Row(self.tile, self.config.value_size).for_vectors(write)
