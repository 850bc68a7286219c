"""Attention of many queries in blocks of threads: a tile of rows against tiles of keys that pass through shared memory.

Per tile of keys the block forms scores, raises each row's running maximum, and adds weights times values to outputs that
stay in registers (Dao et al., "FlashAttention", 2022). Of the threads, KEY_LANES neighbours share a row: each has some of
the tile's keys, and then some columns of the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.attention import Operands
from planish.codegen.kernels.blocks.attention_codes import Scales, source
from planish.codegen.kernels.blocks.attention_parts import Partials, quotient
from planish.codegen.kernels.blocks.attention_pieces import Pieces, pieces_of
from planish.codegen.kernels.blocks.attention_rows import (
    QUAD,
    THREADS,
    Rows,
    Sight,
    Source,
    Span,
    finite,
    int64,
    lane_of,
    launch,
    load_quad,
    minus_infinity,
    quads,
    store_quad,
)
from planish.codegen.kernels.blocks.attention_tiling import KEY_LANES, ROW_LANES, Tiling
from planish.codegen.simt.block import Block, warp_total
from planish.codegen.tiles.float import Expr


def attend_in_tiles(tiling: Tiling, operands: Operands, partials: Partials | None) -> None:
    """Emit the launch that writes y, or, where keys are cut in parts, the partials."""
    config = tiling.config
    tiles = emit.ceil_div(operands.length * config.group, tiling.block_rows)
    parts = emit.index(1) if partials is None else partials.parts

    def body(block: Block) -> None:
        number, lane, b = block.index
        # Late rows see more keys: they begin first, so that none is left for the end.
        first = emit.bind("first_row", (tiles - 1 - number) * tiling.block_rows)
        rows = Rows(config, operands, b, lane % config.kv_heads)
        part = emit.bind("part", lane // config.kv_heads)
        span = Span(rows, first, rows.existing(first + (tiling.block_rows - 1)), tiling.block_keys, part, parts)
        _TileBlock(block, tiling, rows, first, span).run(partials, part)

    launch((tiles, config.kv_heads * parts, operands.batch), body, tiling.shared_bytes)


@dataclass(frozen=True)
class _Side:
    """Keys or values on their way into a tile."""

    tile: Any
    source: Source
    pieces: Pieces
    size: int
    stride: int


class _TileBlock:
    def __init__(self, block: Block, tiling: Tiling, rows: Rows, first: Expr, span: Span) -> None:
        self.block, self.tiling, self.rows, self.first, self.span = block, tiling, rows, first, span
        self.config = tiling.config
        shared = {name: block.shared(name, size) for name, size in tiling.buffers.items()}
        self.queries, self.keys, self.weights = shared["queries"], shared["keys"], shared["weights"]
        self.values = shared.get("values", self.keys)
        # Neighbouring threads write neighbouring places of a tile: each reads as little as it can.
        self.key_pieces, self.value_pieces = (
            pieces_of(layout, 1, 1) for layout in (self.config.keys_layout, self.config.values_layout)
        )
        self.key_source = source(rows, "keys", self.key_pieces)
        self.value_source = source(rows, "values", self.value_pieces)
        self.scales = {name: (shared[f"{name}_scales"], Scales(rows, name)) for name in self.config.scaled}
        self.value_scales = shared.get("values_scales")
        self.key_scales = self.value_scales if self.config.shared else shared.get("keys_scales")
        count = tiling.rows
        self.scores = block.registers("scores", count * tiling.keys)
        self.largest = block.registers("largest", count)
        self.tops = [block.registers("top", 1) for _ in range(count)]
        self.sums = [block.registers("sum", 1) for _ in range(count)]
        self.outputs = block.registers("outputs", count * tiling.columns * QUAD)
        self.sight = Sight(block, rows, count, self.row)

    def row(self, thread: Expr, n: int) -> Expr:
        """The number of a thread's row n."""
        return self.first + int64(lane_of(thread, KEY_LANES)[1] + ROW_LANES * n)

    def run(self, partials: Partials | None, part: Expr) -> None:
        """Emit the block."""
        block, span, size = self.block, self.span, self.tiling.block_keys
        self._begin()
        with T.serial(span.count) as tile:
            base = math.hold(span.first_key + tile * size)
            block.barrier()
            self._stage(base)
            block.barrier()
            self._scores(base)
            self._weights()
            block.barrier()
            self._add_values()
        for total in self.sums:
            warp_total(block, total, lambda a, b: a + b, KEY_LANES)
        with block.phase() as thread:
            for n in range(self.tiling.rows):
                row = emit.bind("row", self.row(thread, n))
                finish = partial(
                    self._finish if partials is None else partial(self._part, partials, part), thread, row, n
                )
                emit.branch(row < self.rows.total, finish)

    def _begin(self) -> None:
        tiling, stride = self.tiling, self.tiling.key_stride
        with self.block.phase() as thread:
            for n in range(tiling.rows):
                self.largest[n] = minus_infinity()
                self.sums[n][0] = T.float32(0)
            for n in range(self.outputs.size):
                self.outputs[n] = T.float32(0)
            width = quads(self.config.size) * QUAD

            def stage(number: Expr) -> None:
                element, row = lane_of(number, width)
                existing = self.rows.existing(self.first + int64(row))
                query = T.if_then_else(element < self.config.size, self.rows.query(existing, element), T.float32(0))
                T.buffer_store(self.queries, query, [row * stride + element])

            _each(thread, tiling.block_rows * width, stage)

    def _stage(self, base: Expr) -> None:
        tiling, config = self.tiling, self.config
        sides = [_Side(self.keys, self.key_source, self.key_pieces, config.size, tiling.key_stride)]
        if not config.shared:
            sides.append(
                _Side(self.values, self.value_source, self.value_pieces, config.value_size, tiling.value_stride)
            )
        with self.block.phase() as thread:
            for side in sides:
                _each(thread, tiling.block_keys * side.pieces.count, partial(self._stage_piece, side, base))
            for tile, found in self.scales.values():

                def keep(tile: Any = tile, found: Scales = found) -> None:
                    T.buffer_store(tile, found.factor(self.span, base + thread), [thread])

                emit.branch(thread < tiling.block_keys, keep)

    def _stage_piece(self, side: _Side, base: Expr, number: Expr) -> None:
        piece, key = lane_of(number, side.pieces.count)
        found = self.span.fetch(side.source, base + key, piece)
        for n in range(side.pieces.quads):
            quad = piece * side.pieces.quads + n

            def keep(n: int = n, quad: Expr = quad) -> None:
                store_quad(side.tile, key * (side.stride // QUAD) + quad, found(n))

            # Words may end in a quad past the row.
            whole = n == 0 or quads(side.size) % side.pieces.quads == 0
            emit.branch(True if whole else quad < quads(side.size), keep)

    def _scores(self, base: Expr) -> None:
        """Products as chains of fma over the elements of a head, then scores, and the largest of each row."""
        tiling, scores, stride = self.tiling, self.scores, self.tiling.key_stride // QUAD
        rows, keys = range(tiling.rows), range(tiling.keys)
        with self.block.phase() as thread:
            key_lane, row_lane = lane_of(thread, KEY_LANES)
            for n in range(scores.size):
                scores[n] = T.float32(0)
            with T.serial(T.int32(quads(self.config.size))) as step:
                queries = [load_quad(self.queries, (row_lane + ROW_LANES * i) * stride + step) for i in rows]
                for j in keys:
                    key = load_quad(self.keys, (key_lane + KEY_LANES * j) * stride + step)
                    for i in rows:
                        for n in range(QUAD):
                            at = i * tiling.keys + j
                            scores[at] = math.fma(queries[i][n], key[n], scores[at])
            for i in rows:
                for j in keys:
                    at = i * tiling.keys + j
                    place = math.hold(base + key_lane + KEY_LANES * j)
                    if self.key_scales is not None:
                        scores[at] = scores[at] * self.key_scales[key_lane + KEY_LANES * j]
                    scores[at] = self.sight.score(thread, i, scores[at], place, self.span.nearest(place))
                self.tops[i][0] = scores[i * tiling.keys]
                for j in keys[1:]:
                    self.tops[i][0] = math.maximum(self.tops[i][0], scores[i * tiling.keys + j])
        for top in self.tops:
            warp_total(self.block, top, math.maximum, KEY_LANES)

    def _weights(self) -> None:
        """Scores to weights, in shared memory; what was summed before becomes relative to the new maximum."""
        tiling = self.tiling
        each = tiling.columns * QUAD
        with self.block.phase() as thread:
            key_lane, row_lane = lane_of(thread, KEY_LANES)
            for i in range(tiling.rows):
                raised = math.hold(math.maximum(self.tops[i][0], self.largest[i]))
                reference = finite(raised)
                correction = math.hold(math.exp_nonpositive(self.largest[i] - reference))
                self.largest[i] = raised
                total = T.float32(0)
                for j in range(tiling.keys):
                    weight = math.hold(math.exp_nonpositive(self.scores[i * tiling.keys + j] - reference))
                    at = (row_lane + ROW_LANES * i) * tiling.weight_stride + key_lane + KEY_LANES * j
                    scaled = weight
                    if self.value_scales is not None:
                        scaled = weight * self.value_scales[key_lane + KEY_LANES * j]
                    T.buffer_store(self.weights, scaled, [at])
                    total = weight if j == 0 else total + weight
                self.sums[i][0] = math.fma(self.sums[i][0], correction, total)
                for n in range(each):
                    self.outputs[i * each + n] = self.outputs[i * each + n] * correction

    def _add_values(self) -> None:
        tiling, outputs = self.tiling, self.outputs
        last = quads(self.config.value_size) - 1
        with self.block.phase() as thread:
            key_lane, row_lane = lane_of(thread, KEY_LANES)
            # Lanes without a column of their own repeat the last one.
            columns = [T.min(key_lane + KEY_LANES * c, T.int32(last)) for c in range(tiling.columns)]
            with T.serial(T.int32(tiling.block_keys // QUAD)) as step:
                stride = tiling.weight_stride // QUAD
                at = [(row_lane + ROW_LANES * i) * stride + step for i in range(tiling.rows)]
                weights = [load_quad(self.weights, place) for place in at]
                for key in range(QUAD):
                    for c, column in enumerate(columns):
                        value = load_quad(self.values, (step * QUAD + key) * (tiling.value_stride // QUAD) + column)
                        for i in range(tiling.rows):
                            for n in range(QUAD):
                                place = (i * tiling.columns + c) * QUAD + n
                                outputs[place] = math.fma(weights[i][key], value[n], outputs[place])

    def _each_output(self, thread: Expr, n: int, write: Any) -> None:
        """`write(column, output)` for the columns that the thread has of its row n."""
        lane, _ = lane_of(thread, KEY_LANES)
        for c in range(self.tiling.columns):
            for e in range(QUAD):
                column = (lane + KEY_LANES * c) * QUAD + e
                output = self.outputs[(n * self.tiling.columns + c) * QUAD + e]
                emit.branch(column < self.config.value_size, partial(write, int64(column), output))

    def _finish(self, thread: Expr, row: Expr, n: int) -> None:
        rows, operands = self.rows, self.rows.operands
        total, factor = math.hold(self.sums[n][0]), T.float32(1)
        if operands.sinks is not None:
            sink = math.hold(operands.sinks[rows.query_head(row)])
            reference = finite(math.maximum(self.largest[n], sink))
            factor = math.hold(math.exp_nonpositive(self.largest[n] - reference))
            total = math.hold(math.fma(total, factor, math.exp_nonpositive(sink - reference)))

        def write(column: Expr, output: Expr) -> None:
            at = [rows.b, row // self.config.group, rows.query_head(row), column]
            T.buffer_store(operands.y, quotient(output * factor, total), at)

        self._each_output(thread, n, write)

    def _part(self, partials: Partials, part: Expr, thread: Expr, row: Expr, n: int) -> None:
        place = emit.bind("place", partials.place(self.rows.b, self.rows.head, row, part))

        def statistics() -> None:
            partials.store(place, 0, self.largest[n])
            partials.store(place, 1, self.sums[n][0])

        emit.branch(tirx.EQ(lane_of(thread, KEY_LANES)[0], T.int32(0)), statistics)
        self._each_output(thread, n, lambda column, output: partials.store(place, column + 2, output))


def _each(thread: Expr, count: int, body: Any) -> None:
    """Within a phase: `body(number)` for the thread's share of `count` numbers, neighbours in neighbouring threads."""
    with T.serial(T.int32(-(-count // THREADS))) as step:
        number = step * THREADS + thread
        if count % THREADS == 0:
            body(number)
        else:
            emit.branch(number < count, lambda: body(number))
