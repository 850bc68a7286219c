"""Attention of few queries: each block takes a part of the keys, read once for all rows; the parts are combined after.

Memory is what is waited for. The scores of a tile of keys are formed from keys that lie in registers for a moment, KEY_LANES
neighbouring threads holding one key among them; the weights pass through shared memory; then each thread adds up some columns
of the values of some of the keys. (Dao et al., "Flash-Decoding", 2023.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.kernels.attention import Attention, Operands
from planish.codegen.kernels.blocks.attention_codes import Scales, source
from planish.codegen.kernels.blocks.attention_parts import Partials
from planish.codegen.kernels.blocks.attention_pieces import LARGEST_WORDS, Pieces, pieces_of
from planish.codegen.kernels.blocks.attention_rows import (
    QUAD,
    THREADS,
    Rows,
    Sight,
    Span,
    finite,
    int64,
    lane_of,
    launch,
    load_quad,
    minus_infinity,
)
from planish.codegen.simt.block import WARP, Block, rounded_bytes, warp_total
from planish.codegen.tiles.float import Expr

KEYS = 64
"""Keys in a tile."""
KEY_LANES = 8
KEY_SLOTS = THREADS // KEY_LANES
"""Threads to a key, and keys that they read side by side."""
SCORE_LANES = 16
"""Threads that share a row's softmax."""
LARGEST_ROWS = THREADS // SCORE_LANES
LARGEST_QUADS = 16
"""Quads of the output that a thread should have, over all rows."""


@dataclass(frozen=True)
class Slice:
    """How a block of few queries is cut."""

    config: Attention

    @property
    def rows(self) -> int:
        """Rows of a block: the query heads of a key-value head, as far as registers reach."""
        return max(1, min(self.config.group, LARGEST_ROWS, LARGEST_QUADS // (self.columns * self.values.quads)))

    @property
    def keys(self) -> Pieces:
        """How keys are read."""
        return pieces_of(self.config.keys_layout, KEY_LANES, 2 * LARGEST_WORDS)

    @property
    def values(self) -> Pieces:
        """How values are read: in pieces so small that registers suffice for as many rows as can be."""
        rows = min(self.config.group, LARGEST_ROWS)
        return pieces_of(self.config.values_layout, KEY_LANES, LARGEST_QUADS // rows)

    @property
    def columns(self) -> int:
        """Pieces of the output that one thread has of each row."""
        return -(-self.values.count // self.column_lanes)

    @property
    def column_lanes(self) -> int:
        """Threads side by side along a value, a power of two."""
        return max(KEY_LANES, min(WARP, 1 << (self.values.count - 1).bit_length()))

    @property
    def key_slots(self) -> int:
        """Threads side by side along the keys of the values."""
        return THREADS // self.column_lanes

    @property
    def query_stride(self) -> int:
        return self.keys.count * self.keys.elements

    @property
    def output_pieces(self) -> Pieces:
        """How a row of the output lies in shared memory."""
        return replace(self.values, count=self.column_lanes * self.columns)

    @property
    def buffers(self) -> dict[str, int]:
        """Elements of the shared buffers."""
        return {
            "queries": self.rows * self.query_stride,
            "weights": self.rows * KEYS,
            "corrections": self.rows,
            "sums": self.key_slots * self.rows * self.output_pieces.count * self.values.elements,
        }

    @property
    def shared_bytes(self) -> int:
        return sum(rounded_bytes(size, "float32") for size in self.buffers.values())


def attend_in_slices(cut: Slice, operands: Operands, partials: Partials) -> None:
    """Emit the launch that writes the partials of all rows, each block for one part of the keys."""
    config = cut.config
    tiles = emit.ceil_div(operands.length * config.group, cut.rows)

    def body(block: Block) -> None:
        number, lane, b = block.index
        rows = Rows(config, operands, b, lane % config.kv_heads)
        first = emit.bind("first_row", lane // config.kv_heads * cut.rows)
        part = emit.bind("part", number)
        span = Span(rows, first, rows.existing(first + (cut.rows - 1)), KEYS, part, partials.parts)
        _SliceBlock(block, cut, rows, first, span).run(partials, part)

    launch((partials.parts, config.kv_heads * tiles, operands.batch), body, cut.shared_bytes)


class _SliceBlock:
    def __init__(self, block: Block, cut: Slice, rows: Rows, first: Expr, span: Span) -> None:
        self.block, self.cut, self.rows, self.first, self.span = block, cut, rows, first, span
        self.config = cut.config
        shared = {name: block.shared(name, size) for name, size in cut.buffers.items()}
        self.queries, self.weights = shared["queries"], shared["weights"]
        self.corrections, self.shared_sums = shared["corrections"], shared["sums"]
        self.key_source, self.value_source = source(rows, "keys", cut.keys), source(rows, "values", cut.values)
        scales = {name: Scales(rows, name) for name in self.config.scaled}
        self.value_scales = scales.get("values")
        self.key_scales = self.value_scales if self.config.shared else scales.get("keys")
        self.key_factors = block.registers("key_factors", KEYS // KEY_SLOTS)
        self.value_factors = block.registers("value_factors", KEYS // SCORE_LANES)
        self.products = [block.registers("product", 1) for _ in range(cut.rows * (KEYS // KEY_SLOTS))]
        self.scores = block.registers("scores", KEYS // SCORE_LANES)
        self.largest, self.top, self.sum = (block.registers(name, 1) for name in ("largest", "top", "sum"))
        self.outputs = block.registers("outputs", cut.rows * cut.columns * cut.values.elements)
        self.sight = Sight(block, rows, 1, lambda thread, n: first + int64(self.score_row(thread)))

    def score_row(self, thread: Expr) -> Expr:
        """The row of the block whose softmax a thread shares; threads beyond the rows repeat the last one."""
        return math.hold(T.min(lane_of(thread, SCORE_LANES)[1], T.int32(self.cut.rows - 1)))

    def run(self, partials: Partials, part: Expr) -> None:
        """Emit the block."""
        block, span = self.block, self.span
        self._begin()
        block.barrier()
        with T.serial(span.count) as tile:
            base = math.hold(span.first_key + tile * KEYS)
            self._products(base)
            # The weights of the tile before have been used.
            block.barrier()
            self._share_products()
            block.barrier()
            self._weights(base)
            block.barrier()
            self._add_values(base)
        self._store(partials, part)

    def _begin(self) -> None:
        stride = self.cut.query_stride
        with self.block.phase() as thread:
            self.largest[0] = minus_infinity()
            self.sum[0] = T.float32(0)
            for n in range(self.outputs.size):
                self.outputs[n] = T.float32(0)
            for row in range(self.cut.rows):
                existing = emit.bind("existing", self.rows.existing(self.first + row))
                with T.serial(T.int32(-(-stride // THREADS))) as step:
                    element = step * THREADS + thread

                    def stage(element: Expr = element, existing: Expr = existing, row: int = row) -> None:
                        inside = element < self.config.size
                        query = T.if_then_else(inside, self.rows.query(existing, element), T.float32(0))
                        T.buffer_store(self.queries, query, [row * stride + self.cut.keys.place(element)])

                    emit.branch(element < stride, stage)

    def _products(self, base: Expr) -> None:
        """Each thread's share of the products of all rows with some keys, then the products in all of a key's threads."""
        rows, keys, pieces = range(self.cut.rows), range(KEYS // KEY_SLOTS), self.cut.keys
        with self.block.phase() as thread:
            lane, slot = lane_of(thread, KEY_LANES)
            self._factors(thread, base)
            for product in self.products:
                product[0] = T.float32(0)
            with T.serial(T.int32(-(-pieces.count // KEY_LANES))) as step:
                piece = step * KEY_LANES + lane

                def visit() -> None:
                    places = [base + slot + KEY_SLOTS * j for j in keys]
                    found = [self.span.fetch(self.key_source, place, piece) for place in places]
                    for q in range(pieces.quads):
                        numbers = [quad(q) for quad in found]
                        for i in rows:
                            at = pieces.quad(piece, q) + i * (self.cut.query_stride // QUAD)
                            query = load_quad(self.queries, at)
                            for j in keys:
                                product = self.products[i * len(keys) + j]
                                for n in range(QUAD):
                                    product[0] = math.fma(query[n], numbers[j][n], product[0])

                emit.branch(True if pieces.count % KEY_LANES == 0 else piece < pieces.count, visit)
        for product in self.products:
            warp_total(self.block, product, lambda a, b: a + b, KEY_LANES)

    def _factors(self, thread: Expr, base: Expr) -> None:
        """The scales that this tile of keys needs, asked for before its codes."""
        if self.key_scales is not None:
            _, slot = lane_of(thread, KEY_LANES)
            for j in range(KEYS // KEY_SLOTS):
                self.key_factors[j] = self.key_scales.factor(self.span, base + slot + KEY_SLOTS * j)
        if self.value_scales is not None:
            lane, _ = lane_of(thread, SCORE_LANES)
            for j in range(KEYS // SCORE_LANES):
                self.value_factors[j] = self.value_scales.factor(self.span, base + lane + SCORE_LANES * j)

    def _share_products(self) -> None:
        with self.block.phase() as thread:
            lane, slot = lane_of(thread, KEY_LANES)
            for i in range(self.cut.rows):

                def share(i: int = i) -> None:
                    for j in range(KEYS // KEY_SLOTS):
                        product = self.products[i * (KEYS // KEY_SLOTS) + j][0]
                        if self.key_scales is not None:
                            product = product * self.key_factors[j]
                        T.buffer_store(self.weights, product, [i * KEYS + slot + KEY_SLOTS * j])

                emit.branch(tirx.EQ(lane, T.int32(i)), share)

    def _weights(self, base: Expr) -> None:
        """Products to weights where they lie, and the corrections of what was summed before."""
        keys = range(KEYS // SCORE_LANES)
        with self.block.phase() as thread:
            row, (lane, _) = self.score_row(thread), lane_of(thread, SCORE_LANES)
            for j in keys:
                place = math.hold(base + lane + SCORE_LANES * j)
                product = math.hold(self.weights[row * KEYS + lane + SCORE_LANES * j])
                self.scores[j] = self.sight.score(thread, 0, product, place, self.span.nearest(place))
            self.top[0] = self.scores[0]
            for j in keys[1:]:
                self.top[0] = math.maximum(self.top[0], self.scores[j])
        warp_total(self.block, self.top, math.maximum, SCORE_LANES)
        with self.block.phase() as thread:
            lane, row = lane_of(thread, SCORE_LANES)
            raised = math.hold(math.maximum(self.top[0], self.largest[0]))
            reference = finite(raised)
            correction = math.hold(math.exp_nonpositive(self.largest[0] - reference))
            self.largest[0] = raised
            total = T.float32(0)
            for j in keys:
                self.scores[j] = math.exp_nonpositive(self.scores[j] - reference)
                total = self.scores[j] if j == 0 else total + self.scores[j]
            self.sum[0] = math.fma(self.sum[0], correction, total)

            def share() -> None:
                for j in keys:
                    weight = self.scores[j]
                    if self.value_scales is not None:
                        weight = weight * self.value_factors[j]
                    T.buffer_store(self.weights, weight, [row * KEYS + lane + SCORE_LANES * j])
                emit.branch(lane < 1, lambda: T.buffer_store(self.corrections, correction, [row]))

            emit.branch(row < self.cut.rows, share)

    def _add_values(self, base: Expr) -> None:
        cut, outputs = self.cut, self.outputs
        rows, pieces = range(cut.rows), cut.values
        with self.block.phase() as thread:
            lane, slot = lane_of(thread, cut.column_lanes)
            for i in rows:
                correction = math.hold(self.corrections[i])
                for n in range(cut.columns * pieces.elements):
                    at = i * cut.columns * pieces.elements + n
                    outputs[at] = outputs[at] * correction
            with T.serial(T.int32(KEYS // QUAD // cut.key_slots)) as step:
                first = step * cut.key_slots + slot
                weights = [load_quad(self.weights, first + i * (KEYS // QUAD)) for i in rows]
                for c in range(cut.columns):
                    # Lanes without a column of their own repeat the last one.
                    piece = T.min(lane + cut.column_lanes * c, T.int32(pieces.count - 1))
                    places = [base + first * QUAD + n for n in range(QUAD)]
                    found = [self.span.fetch(self.value_source, place, piece) for place in places]
                    for q in range(pieces.quads):
                        numbers = [quad(q) for quad in found]
                        for n in range(QUAD):
                            for i in rows:
                                for e in range(QUAD):
                                    at = ((i * cut.columns + c) * pieces.quads + q) * QUAD + e
                                    outputs[at] = math.fma(weights[i][n], numbers[n][e], outputs[at])

    def _store(self, partials: Partials, part: Expr) -> None:
        cut, rows, pieces = self.cut, self.rows, self.cut.output_pieces
        width = pieces.count * pieces.elements
        warp_total(self.block, self.sum, lambda a, b: a + b, SCORE_LANES)
        with self.block.phase() as thread:
            lane, slot = lane_of(thread, cut.column_lanes)
            for i in range(cut.rows):
                for c in range(cut.columns):
                    for n in range(pieces.elements):
                        quad = pieces.quad(lane + cut.column_lanes * c, n // QUAD)
                        at = (slot * cut.rows + i) * width + quad * QUAD + n % QUAD
                        output = self.outputs[(i * cut.columns + c) * pieces.elements + n]
                        T.buffer_store(self.shared_sums, output, [at])
        self.block.barrier()

        def place(row: Expr) -> Expr:
            return emit.bind("place", partials.place(rows.b, rows.head, self.first + int64(row), part))

        with self.block.phase() as thread:
            lane, row = lane_of(thread, SCORE_LANES)

            def statistics() -> None:
                at = place(row)
                partials.store(at, 0, self.largest[0])
                partials.store(at, 1, self.sum[0])

            mine = T.And(tirx.EQ(lane, T.int32(0)), row < cut.rows)
            emit.branch(T.And(mine, self.first + int64(row) < rows.total), statistics)
            size = self.config.value_size
            with T.serial(T.int32(-(-cut.rows * size // THREADS))) as step:
                number = step * THREADS + thread
                i, column = number // size, number % size
                held = pieces.place(column)

                def add() -> None:
                    terms = [self.shared_sums[(slot * cut.rows + i) * width + held] for slot in range(cut.key_slots)]
                    total = terms[0]
                    for term in terms[1:]:
                        total = total + term
                    partials.store(place(i), int64(column) + 2, total)

                emit.branch(T.And(number < cut.rows * size, self.first + int64(i) < rows.total), add)
