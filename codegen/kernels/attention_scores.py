"""The scores of some rows against one block of keys, and their weights relative to the largest score so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.float_gemm import Step, register_tile
from planish.codegen.kernels.vectors import across
from planish.codegen.tiles.float import Expr

if TYPE_CHECKING:
    from planish.codegen.kernels.attention_task import AttentionTask


class Subtile:
    """At most ``config.rows`` rows of a task, from its row ``row`` on, in front of the block of keys from ``base`` on.

    ``lowest`` and ``end`` bound the keys that any of the rows sees. Only those *groups* of ``key_vectors`` vectors of keys
    are visited that contain one: ``groups`` of them from number ``first_group`` of the block on.
    """

    def __init__(self, task: AttentionTask, row: Expr, base: Expr) -> None:
        self.task, self.config, self.base = task, task.config, base
        self.row = emit.bind("row", row)
        self.first = emit.bind("first_row", task.first + row)
        self.count = emit.bind("rows", T.min(task.count - row, emit.index(task.config.rows)))
        self.first_position, self.last_position = (
            emit.bind("position", task.position(r)) for r in (self.first, self.first + self.count - 1)
        )
        self.lowest = emit.bind("lowest", task.lowest(self.first_position))
        self.end = emit.bind("end", task.end(self.last_position))
        self.sees_some = T.And(base < self.end, base + task.config.block > self.lowest)
        self.group_keys = task.config.key_vectors * task.config.tile.lanes
        self.first_group = emit.bind("first_group", T.max(self.lowest - base, emit.index(0)) // self.group_keys)
        last = T.min(self.end - base, emit.index(task.config.block))
        self.groups = emit.bind("groups", emit.ceil_div(last, self.group_keys) - self.first_group)

    def sees_all(self, group: Expr) -> Expr | bool:
        """Whether every row sees every key of a group."""
        if self.config.padding:
            return False
        begin = self.base + group * self.group_keys
        whole = begin + self.group_keys <= self.task.end(self.first_position)
        return T.And(begin >= self.task.lowest(self.last_position), whole)

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
            queries, heads = (emit.scratch(name, height, "int64") for name in ("queries", "heads"))
            with emit.unrolled("x", height) as x:
                row = emit.bind("row", T.min(self.subtile.first + x, last))
                T.buffer_store(queries, row // config.group, [x])
                T.buffer_store(heads, task.query_head(row), [x])
            panels = emit.scratch("panels", config.key_vectors, "int64") if task.turned is None else None
            with emit.loop("group", self.subtile.groups) as number:
                group = emit.bind("group", self.subtile.first_group + number)
                if panels is not None:
                    first = self.subtile.base // lanes + group * config.key_vectors
                    with emit.unrolled("v", config.key_vectors) as v:
                        # A group may reach past the last panel; its masked scores come from any panel.
                        T.buffer_store(panels, T.min(first + v, self.operands.panels - 1), [v])

                def sweep(step: Step) -> None:
                    # Elements that share bytes are unpacked side by side.
                    together = 1 if panels is None or config.key_codes is None else config.key_codes.per_byte
                    with emit.loop("element", config.size // together) as number:
                        if panels is not None and height in config.streaming_heights:
                            self._ask_ahead(panels, number)
                        for part in range(together):
                            visit(step, number * together + part)
                    for element in range(config.size // together * together, config.size):
                        visit(step, emit.index(element))

                def visit(step: Step, element: Expr) -> None:
                    def key(v: Expr) -> Expr:
                        if panels is None:
                            panel = group * config.key_vectors + v
                            return emit.load(task.turned, [(panel * config.size + element) * lanes], lanes)
                        row = config.keys_layout.read(self.tile, self.operands.k, task.b, task.head, panels[v], element)
                        if task.key_factors is not None:
                            row = task.key_factors.panel_from_zero(row, self._offset(group, v), lanes)
                        return row

                    step(lambda x: self.operands.q[task.b, queries[x], heads[x], element], key)

                def store(x: Expr, v: Expr, value: Expr, last: bool) -> None:
                    if task.key_factors is not None:
                        value = value * emit.load(task.key_factors.scales, [self._offset(group, v)], lanes)
                    emit.store(task.weights, [x * config.block + self._offset(group, v)], value, lanes)

                # Every chain begins at zero, so nothing is loaded.
                register_tile(self.tile, height, config.key_vectors, sweep, lambda x, v: self._constant(0), store)

        self.subtile.at_height(at_height)

    def _offset(self, group: Expr, v: Expr | int) -> Expr:
        """The first key of vector `v` of a group, counted from the beginning of the block."""
        return (group * self.config.key_vectors + v) * self.tile.lanes

    def _ask_ahead(self, panels: Expr, step: Expr) -> None:
        """Ask for what the same step reads of the next block. Codes of several panels share a line of the processor's
        caches: the steps walk over the bytes of the whole group."""
        config, task = self.config, self.task
        if config.key_codes is None:
            with emit.unrolled("v", config.key_vectors) as v:
                emit.prefetch(self.operands.k, [task.b, task.head, panels[v] + config.block_vectors, step, 0])
        else:
            bytes_ahead = step * (config.key_vectors * self.tile.lanes)
            emit.prefetch(self.operands.k, [task.b, task.head, panels[0] + config.block_vectors, bytes_ahead])

    def largest(self) -> None:
        """Emit products to scores, invisible ones -inf, and ``task.raised``: the largest score with this block."""
        config, lanes, task = self.config, self.tile.lanes, self.task
        with emit.loop("row", self.subtile.count) as x:
            row = emit.bind("r", self.subtile.first + x)
            position = emit.bind("position", task.position(row))
            best = self._registers(float("-inf"))
            with emit.loop("group", self.subtile.groups) as number:
                group = emit.bind("group", self.subtile.first_group + number)

                def visit(masked: bool) -> None:
                    for v in range(config.key_vectors):
                        offset = (group * config.key_vectors + v) * lanes
                        at = [x * config.block + offset]
                        score = math.hold(self._score(emit.load(task.weights, at, lanes), row, position, offset))
                        if masked:
                            score = math.hold(self._masked(score, position, offset))
                        emit.store(task.weights, at, score, lanes)
                        emit.store(best, [v * lanes], math.maximum(emit.load(best, [v * lanes], lanes), score), lanes)

                emit.branch(self.subtile.sees_all(group), lambda: visit(masked=False), lambda: visit(masked=True))
            largest = math.hold(across(self._combined(best, math.maximum), math.maximum))
            T.buffer_store(task.raised, math.maximum(largest, math.hold(task.largest[self.subtile.row + x])), [x])

    def _score(self, product: Expr, row: Expr, position: Expr, offset: Expr) -> Expr:
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

    def _masked(self, score: Expr, position: Expr, offset: Expr) -> Expr:
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
            sums = self._registers(0.0)
            with emit.loop("group", self.subtile.groups) as number:
                group = emit.bind("group", self.subtile.first_group + number)
                for v in range(config.key_vectors):
                    at = [x * config.block + (group * config.key_vectors + v) * lanes]
                    weight = math.hold(math.exp_nonpositive(emit.load(task.weights, at, lanes) - reference))
                    scaled = weight
                    if task.value_factors is not None:
                        # Keys that the row does not see have weight zero, but their scale may be anything.
                        scale = emit.load(task.value_factors.scales, [self._offset(group, v)], lanes)
                        scaled = weight * scale
                    emit.store(task.weights, at, scaled, lanes)
                    emit.store(sums, [v * lanes], emit.load(sums, [v * lanes], lanes) + weight, lanes)
            at = [(self.subtile.row + x) * lanes]
            correction = self.tile.broadcast(task.corrections[x])
            total = self._combined(sums, lambda a, b: a + b)
            emit.store(task.sums, at, self.tile.fma(emit.load(task.sums, at, lanes), correction, total), lanes)

    def _registers(self, number: float) -> Expr:
        """One register for each vector of a group, all holding ``number``."""
        lanes = self.tile.lanes
        buffer = emit.registers("partial", self.config.key_vectors * lanes)
        for v in range(self.config.key_vectors):
            emit.store(buffer, [v * lanes], self._constant(number), lanes)
        return buffer

    def _combined(self, buffer: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """The registers of ``buffer`` pairwise down to one vector."""
        lanes = self.tile.lanes
        parts = [math.hold(emit.load(buffer, [v * lanes], lanes)) for v in range(self.config.key_vectors)]
        while len(parts) > 1:
            rest = parts[len(parts) // 2 * 2 :]
            parts = [math.hold(combine(a, b)) for a, b in zip(parts[::2], parts[1::2])] + rest
        return parts[0]

    def _constant(self, number: float) -> Expr:
        return self.tile.broadcast(T.float32(number))
