"""The scores of some rows against one block of keys, and their weights relative to the largest score so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.vectors import across
from planish.codegen.tiles.float import Expr

if TYPE_CHECKING:
    from planish.codegen.kernels.attention_task import AttentionTask


class Subtile:
    """At most ``config.rows`` rows of a task, from its row ``row`` on, in front of the block of keys from ``base`` on.

    ``lowest`` and ``end`` bound the keys that any of the rows sees.
    """

    def __init__(self, task: AttentionTask, row: Expr, base: Expr) -> None:
        self.config, self.base = task.config, base
        self.row = emit.bind("row", row)
        self.first = emit.bind("first_row", task.first + row)
        self.count = emit.bind("rows", T.min(task.count - row, emit.index(task.config.rows)))
        first, last = (emit.bind("position", task.position(r)) for r in (self.first, self.first + self.count - 1))
        self.lowest, self.end = emit.bind("lowest", task.lowest(first)), emit.bind("end", task.end(last))
        past = base + task.config.block
        self.sees_some = T.And(base < self.end, past > self.lowest)
        self.sees_all = T.And(base >= task.lowest(last), past <= task.end(first))
        if task.config.padding:
            self.sees_all = False

    def at_height(self, body: Callable[[int], None]) -> None:
        """Emit ``body(h)`` for the smallest height of a register tile that holds all rows."""

        def choose(heights: list[int]) -> None:
            if len(heights) == 1:
                body(heights[0])
            else:
                emit.branch(self.count <= heights[0], lambda: body(heights[0]), lambda: choose(heights[1:]))

        choose(self.config.heights)


class Scores:
    """The matrix ``task.weights`` (rows of the subtile, keys of the block): first products, then scores, then weights."""

    def __init__(self, task: AttentionTask, subtile: Subtile) -> None:
        self.task, self.subtile = task, subtile
        self.config, self.tile, self.operands = task.config, task.tile, task.operands

    def products(self) -> None:
        """Emit the products of queries and keys: for each the chain of fma over the elements of a head, from 0."""
        config, lanes, task = self.config, self.tile.lanes, self.task

        def at_height(height: int) -> None:
            # Rows past the last one repeat it; what becomes of them is never read.
            last = self.subtile.first + self.subtile.count - 1
            numbers = [emit.bind("r", T.min(self.subtile.first + x, last)) for x in range(height)]
            queries = [(emit.bind("query", r // config.group), emit.bind("head", task.query_head(r))) for r in numbers]
            with emit.loop("group", config.block_vectors // config.key_vectors) as group:
                first = self.subtile.base // lanes + group * config.key_vectors
                # A block may reach past the last panel; its masked scores come from any panel.
                panels = [
                    emit.bind("panel", T.min(first + v, self.operands.panels - 1)) for v in range(config.key_vectors)
                ]
                rows = [emit.registers("row", config.key_vectors * lanes) for _ in range(height)]
                for row in rows:
                    for v in range(config.key_vectors):
                        emit.store(row, [v * lanes], self.tile.broadcast(T.float32(0)), lanes)
                with emit.loop("element", config.size) as element:
                    keys = [
                        math.hold(
                            self.tile.widen(
                                emit.load(self.operands.k, [task.b, task.head, panel, element, 0], lanes),
                                config.cache_dtype,
                            )
                        )
                        for panel in panels
                    ]
                    for row, (query, head) in zip(rows, queries):
                        scalar = self.tile.broadcast(self.operands.q[task.b, query, head, element])
                        for v, key in enumerate(keys):
                            at = [v * lanes]
                            emit.store(row, at, self.tile.fma(scalar, key, emit.load(row, at, lanes)), lanes)
                for x, row in enumerate(rows):
                    for v in range(config.key_vectors):
                        at = [x * config.block + (group * config.key_vectors + v) * lanes]
                        emit.store(task.weights, at, emit.load(row, [v * lanes], lanes), lanes)

        self.subtile.at_height(at_height)

    def largest(self, masked: bool) -> None:
        """Emit products to scores, invisible ones -inf if ``masked``, and ``task.raised``: the largest with this block."""
        config, lanes, task = self.config, self.tile.lanes, self.task
        with emit.loop("row", self.subtile.count) as x:
            row = emit.bind("r", self.subtile.first + x)
            position = emit.bind("position", task.position(row))
            best = []
            for v in range(config.block_vectors):
                at = [x * config.block + v * lanes]
                score = math.hold(self._score(emit.load(task.weights, at, lanes), row, position, v * lanes))
                if masked:
                    score = math.hold(self._masked(score, position, v * lanes))
                emit.store(task.weights, at, score, lanes)
                best.append(score)
            while len(best) > 1:
                pairs = zip(best[::2], best[1::2])
                best = [math.hold(math.maximum(a, b)) for a, b in pairs] + best[len(best) // 2 * 2 :]
            before = math.hold(task.largest[self.subtile.row + x])
            T.buffer_store(task.raised, math.maximum(math.hold(across(best[0], math.maximum)), before), [x])

    def _score(self, product: Expr, row: Expr, position: Expr, offset: int) -> Expr:
        """scale, soft cap, slope and bias, with every product that meets a sum in one fused multiply-add."""
        config, lanes, operands, task = self.config, self.tile.lanes, self.operands, self.task
        factor, key = config.scale, self.subtile.base + offset
        if config.softcap is not None:
            product = math.hold(math.tanh(product * self._constant(config.scale / config.softcap)))
            factor = config.softcap
        addend = None
        if operands.bias is not None:
            assert config.bias is not None
            full = (task.b, task.query_head(row), row // config.group)
            outer = [i if has else emit.index(0) for i, has in zip(full, config.bias)]
            if config.bias[3]:
                left = T.cast(T.min(operands.capacity - key, emit.index(lanes)), "int32")
                addend = self.tile.load_first(T.address_of(operands.bias[(*outer, key)]), left)
            else:
                addend = self.tile.broadcast(operands.bias[(*outer, emit.index(0))])
        if operands.slopes is not None:
            slope = self.tile.broadcast(operands.slopes[task.query_head(row)])
            distance = T.ramp(T.cast(key - position, "int32"), T.int32(1), lanes)
            addend = self.tile.fma(
                slope, T.cast(distance, f"float32x{lanes}"), self._constant(0) if addend is None else addend
            )
        # Adding zero keeps the product from being fused with the difference that follows in one place only.
        return self.tile.fma(product, self._constant(factor), self._constant(0) if addend is None else addend)

    def _masked(self, score: Expr, position: Expr, offset: int) -> Expr:
        lanes, task = self.tile.lanes, self.task
        # One unsigned comparison tests both ends of the range.
        lowest = emit.bind("lowest", task.lowest(position))
        span = T.cast(T.max(task.end(position) - lowest, emit.index(0)), "uint32")
        away = T.ramp(T.cast(self.subtile.base + offset - lowest, "int32"), T.int32(1), lanes)
        visible = T.reinterpret(f"uint32x{lanes}", away) < T.broadcast(span, lanes)
        if task.seen is not None:
            visible = T.And(visible, T.NE(emit.load(task.seen, [offset], lanes), T.broadcast(T.int32(0), lanes)))
        return tirx.Select(visible, score, self._constant(float("-inf")))

    def exponentials(self) -> None:
        """Emit scores to weights, the corrections for what was summed before, and the sums with these weights."""
        config, lanes, task = self.config, self.tile.lanes, self.task
        # While a row has seen nothing, its largest score is -inf, and -inf less -inf would be NaN.
        raised = math.hold(emit.load(task.raised, [0], lanes))
        nothing = tirx.EQ(raised, self._constant(float("-inf")))
        reference = math.hold(tirx.Select(nothing, self._constant(0), raised))
        before = emit.load(task.largest, [self.subtile.row], lanes)
        emit.store(task.corrections, [0], math.exp_nonpositive(before - reference), lanes)
        with emit.loop("row", self.subtile.count) as x:
            T.buffer_store(task.largest, task.raised[x], [self.subtile.row + x])
        emit.store(task.raised, [0], reference, lanes)
        with emit.loop("row", self.subtile.count) as x:
            reference = math.hold(self.tile.broadcast(task.raised[x]))
            sums = []
            for v in range(config.block_vectors):
                at = [x * config.block + v * lanes]
                weight = math.hold(math.exp_nonpositive(emit.load(task.weights, at, lanes) - reference))
                emit.store(task.weights, at, weight, lanes)
                sums.append(weight)
            while len(sums) > 1:
                sums = [math.hold(a + b) for a, b in zip(sums[::2], sums[1::2])] + sums[len(sums) // 2 * 2 :]
            at = [(self.subtile.row + x) * lanes]
            correction = self.tile.broadcast(task.corrections[x])
            emit.store(task.sums, at, self.tile.fma(emit.load(task.sums, at, lanes), correction, sums[0]), lanes)

    def _constant(self, number: float) -> Expr:
        return self.tile.broadcast(T.float32(number))
