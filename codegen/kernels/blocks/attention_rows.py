"""What the block kernels of attention share: which keys a row sees, its scores, and reading four elements at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.attention import Attention, Operands
from planish.codegen.kernels.attention_range import VisibleRange
from planish.codegen.simt.block import Block, Registers
from planish.codegen.tiles.float import Expr

THREADS = 128
"""Of every block."""
QUAD = 4
"""Elements that are read together: 16 bytes of float32."""


def quads(size: int) -> int:
    """Quads of a head of `size` elements, the last one perhaps in part."""
    return -(-size // QUAD)


def minus_infinity() -> Expr:
    return T.float32(float("-inf"))


def int32(value: Expr) -> Expr:
    return T.cast(value, "int32")


def int64(value: Expr) -> Expr:
    return T.cast(value, "int64")


def launch(blocks: tuple[Expr, ...], body: Callable[[Block], None], shared_bytes: int) -> None:
    """Emit a grid of blocks of THREADS threads that have all the registers they need."""
    emit.launch(blocks, THREADS, emit.unshared(body), shared_bytes)


def lane_of(thread: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Within a phase: the number of a thread among `lanes` neighbours, and that of its neighbourhood."""
    # Held: of a place in a loop that runs backwards, and a condition on the one, TVM 0.27 derives a wrong other.
    return math.hold(thread % lanes), math.hold(thread // lanes)


def load_quad(buffer: Any, quad: Expr) -> list[Expr]:
    """Within a phase: the elements of a quad of a one-dimensional buffer, read at once."""
    kept = current().buffer((QUAD,), str(buffer.dtype))
    # TVM reads a vector at once only where it sees that its place is a multiple of the length.
    T.buffer_store(kept, emit.load(buffer, [quad * QUAD], QUAD), [T.ramp(0, 1, QUAD)])
    return [kept[n] for n in range(QUAD)]


def store_quad(buffer: Any, quad: Expr, elements: list[Expr]) -> None:
    """Within a phase: the same as a store."""
    kept = current().buffer((QUAD,), str(buffer.dtype))
    for n, element in enumerate(elements):
        T.buffer_store(kept, element, [n])
    emit.store(buffer, [quad * QUAD], kept[T.ramp(0, 1, QUAD)], QUAD)


def finite(largest: Expr) -> Expr:
    """What exponents are taken relative to: while nothing was seen, -inf less -inf would be NaN."""
    return math.hold(tirx.Select(tirx.EQ(largest, minus_infinity()), T.float32(0), largest))


Quads: TypeAlias = Callable[[int], list[Expr]]
"""The quads of a piece of a row by their number, to be asked for within the phase that read the piece: float32 elements."""


class Source(Protocol):
    """The rows of a head in a cache, cut into pieces."""

    def fetch(self, key: Expr, piece: Expr, shown: Expr | None) -> Quads:
        """Within a phase: a piece of an int32 key that exists; finite numbers where padding hides it (`shown` is false)."""
        ...


class Cached:
    """Floats in one dimension, a quad to a piece; the keys of the head begin with number `first`, of `size` elements each."""

    def __init__(self, config: Attention, flat: Any, size: int, first: Expr) -> None:
        self.config, self.flat, self.size = config, flat, size
        self.first = emit.bind("first", first)

    def fetch(self, key: Expr, piece: Expr, shown: Expr | None) -> Quads:
        """Within a phase: four elements, zeros past the size of the key and where padding hides it: it may hold NaN."""
        found = self._quad(key, piece)
        if shown is not None:
            found = [math.hold(tirx.Select(shown, element, T.float32(0))) for element in found]
        return lambda number: found

    def _quad(self, key: Expr, quad: Expr) -> list[Expr]:
        key = self.first + int64(key)
        if self.size % QUAD == 0:
            at = emit.bind("at", key * (self.size // QUAD) + int64(quad))
            return [self._widened(stored) for stored in load_quad(self.flat, at)]
        at = emit.bind("at", key * self.size + int64(quad) * QUAD)
        found = []
        for n in range(QUAD):
            # Rows that are no multiple of 16 bytes are read element by element.
            inside = quad * QUAD + n < self.size
            found.append(math.hold(T.if_then_else(inside, self._widened(self.flat[at + n]), T.float32(0))))
        return found

    def _widened(self, stored: Expr) -> Expr:
        return self.config.tile.widen(stored, self.config.cache_dtype)


class Rows(VisibleRange):
    """The rows of the queries that share key-value head `head` in batch row `b`, in the block being emitted.

    Row r is query r // group, head r % group of those that share the key-value head.
    """

    def __init__(self, config: Attention, operands: Operands, b: Expr, head: Expr) -> None:
        self.config, self.operands, self.b, self.head = config, operands, b, head
        self.total = operands.length * config.group
        self.start = emit.bind("start", emit.index(0) if operands.start is None else operands.start[b])
        keys = operands.capacity
        if operands.kv_length is not None:
            keys = T.min(operands.kv_length[b], keys)
        self.keys = emit.bind("keys", keys)

    def existing(self, row: Expr) -> Expr:
        """The row, or the last one for those past it; what becomes of these is not kept."""
        return T.min(row, self.total - 1)

    def shown(self, key: Expr) -> Expr | None:
        """Whether padding lets an existing key be seen; None where there is none."""
        padding = self.operands.padding
        return None if padding is None else T.cast(padding[self.b, int64(key)], "bool")

    def query(self, row: Expr, element: Expr) -> Expr:
        """An element of the query of an existing row."""
        return self.operands.q[self.b, row // self.config.group, self.query_head(row), int64(element)]

    def score(self, product: Expr, row: Expr, key: Expr) -> Expr:
        """Within a phase: scale, soft cap, slope and bias; `row` and `key` (int64) exist."""
        config, operands = self.config, self.operands
        factor, addend = config.scale, T.float32(0)
        if config.softcap is not None:
            product = math.hold(math.tanh(product * T.float32(config.scale / config.softcap)))
            factor = config.softcap
        if operands.bias is not None:
            assert config.bias is not None
            full = (self.b, self.query_head(row), row // config.group, key)
            addend = math.hold(operands.bias[tuple(i if has else emit.index(0) for i, has in zip(full, config.bias))])
        if operands.slopes is not None:
            distance = T.cast(int32(key - self.position(row)), "float32")
            addend = math.hold(math.fma(operands.slopes[self.query_head(row)], distance, addend))
        return math.hold(math.fma(product, T.float32(factor), addend))


class Span:
    """The keys that some row from `first` to `last` sees, cut in tiles of `size` keys that stand at multiples of it.

    Part `part` of `parts` takes `count` tiles from key `first_key` on; these are int32. Every key from `lowest` to `last` is
    seen by one of the rows, unless padding hides it, so that it is finite.
    """

    def __init__(self, rows: Rows, first: Expr, last: Expr, size: int, part: Expr, parts: Expr) -> None:
        self.rows = rows
        lowest = emit.bind("lowest", rows.lowest(rows.position(first)))
        end = emit.bind("end", T.max(rows.end(rows.position(last)), emit.index(0)))
        begin = emit.bind("begin", lowest // size)
        tiles = emit.bind("tiles", T.max(emit.ceil_div(end, size) - begin, emit.index(0)))
        each = emit.bind("each", emit.ceil_div(tiles, parts))
        # What stays over the tiles is held in 32 bits: registers are scarce.
        self.lowest, self.last = math.hold(int32(lowest)), math.hold(int32(end - 1))
        self.first_key = math.hold(int32((begin + part * each) * size))
        self.count = math.hold(int32(T.max(T.min(each, tiles - part * each), emit.index(0))))

    def nearest(self, key: Expr) -> Expr:
        """An int32 key, or the nearest one that may be read."""
        return T.min(T.max(key, self.lowest), self.last)

    def fetch(self, source: Source, key: Expr, piece: Expr) -> Quads:
        """Within a phase: a piece of the nearest key."""
        place = math.hold(self.nearest(key))
        return source.fetch(place, piece, self.rows.shown(place))


class Sight:
    """The range of keys that each of a thread's rows sees, in registers."""

    def __init__(self, block: Block, rows: Rows, count: int, row: Callable[[Expr, int], Expr]) -> None:
        """`row(thread, n)` is the number, int64, of the thread's row n."""
        self.rows, self.row = rows, row
        self.lowest: Registers = block.registers("row_lowest", count, "int32")
        self.end: Registers = block.registers("row_end", count, "int32")
        with block.phase() as thread:
            for n in range(count):
                position = emit.bind("position", rows.position(rows.existing(row(thread, n))))
                self.lowest[n] = int32(rows.lowest(position))
                self.end[n] = int32(rows.end(position))

    def score(self, thread: Expr, n: int, product: Expr, key: Expr, near: Expr) -> Expr:
        """Within a phase: the score of a product, -inf where the row n does not see the int32 key; `near` exists."""
        row = self.rows.existing(self.row(thread, n))
        score = self.rows.score(product, row, int64(near))
        visible = T.And(key >= self.lowest[n], key < self.end[n])
        shown = self.rows.shown(near)
        if shown is not None:
            visible = T.And(visible, shown)
        return math.hold(tirx.Select(visible, score, minus_infinity()))
