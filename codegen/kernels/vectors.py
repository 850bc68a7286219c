"""What kernels that work row by row share: a row cut into vectors, sums across a vector, rows shared out to threads.

The law. A row is cut into vectors from its first element on, with the last, partial vector loaded under a mask, and its
sums are formed in an order that depends on its width alone. So the bits of a row do not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen import math
from planish.codegen.kernels import emit
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr, FloatTile

CHAINS = 4
"""Sums run in this many vectors side by side, because a chain of additions waits for itself."""

SERIAL_WORK = 1 << 14
"""Below this many element visits waking the threads costs more than they save."""


def for_rows(rows: Expr, work: Expr | int, body: Callable[[Expr], None]) -> None:
    """Emit ``body(row)`` for every row, on several threads when there is enough to do.

    Args:
        rows: number of rows.
        work: element visits in one row.
        body: emits the work on one row; it is emitted twice.
    """

    emit.some_tasks("row", rows, rows * work <= SERIAL_WORK, body)


class Row:
    """The vectors of ``width`` float32 elements of a row from ``start`` on; the width may be known only at the call."""

    def __init__(self, tile: FloatTile, width: Expr | int, start: Expr | int = 0) -> None:
        self.tile, self.width, self.start = tile, width, start
        self.whole = width // tile.lanes

    def for_vectors(self, body: Callable[[Vector], None]) -> None:
        """Emit ``body`` for every vector of the row, in order."""
        with emit.loop("vector", self.whole) as vector:
            body(self._vector(vector))
        self._tail(body)

    def total(self, add: Callable[[Expr, Vector], Expr]) -> Expr:
        """A sum over the row, as a float32 scalar in a register.

        ``add(sums, vector)`` gives the sums with that vector's terms added, nothing being added past the end. CHAINS
        vectors are summed side by side, then pairwise, then the lanes pairwise.
        """
        lanes = self.tile.lanes
        sums = emit.registers("sums", CHAINS * lanes)

        def step(chain: int, vector: Vector) -> None:
            emit.store(sums, [chain * lanes], add(emit.load(sums, [chain * lanes], lanes), vector), lanes)

        for chain in range(CHAINS):
            emit.store(sums, [chain * lanes], self.tile.broadcast(T.float32(0)), lanes)
        groups = self.whole // CHAINS
        with emit.loop("group", groups) as group:
            for chain in range(CHAINS):
                step(chain, self._vector(group * CHAINS + chain))
        with emit.loop("vector", self.whole - groups * CHAINS) as vector:
            step(0, self._vector(groups * CHAINS + vector))
        self._tail(lambda vector: step(1, vector))
        parts = [emit.load(sums, [chain * lanes], lanes) for chain in range(CHAINS)]
        return math.hold(across((parts[0] + parts[1]) + (parts[2] + parts[3]), lambda a, b: a + b))

    def largest(self, value: Callable[[Vector], Expr]) -> Expr:
        """The largest ``value`` over the row, NaN passed over; lanes past the end must be -inf. A scalar in a register."""
        lanes = self.tile.lanes
        best = emit.registers("best", lanes)
        emit.store(best, [0], self.tile.broadcast(T.float32(float("-inf"))), lanes)

        def take(vector: Vector) -> None:
            emit.store(best, [0], math.maximum(emit.load(best, [0], lanes), math.hold(value(vector))), lanes)

        self.for_vectors(take)
        return math.hold(across(emit.load(best, [0], lanes), math.maximum))

    def _vector(self, number: Expr | int, count: Expr | None = None) -> Vector:
        return Vector(self.tile, self.start + number * self.tile.lanes, count)

    def _tail(self, body: Callable[[Vector], None]) -> None:
        if isinstance(self.width, int):
            if self.width % self.tile.lanes:
                body(self._vector(self.whole, T.int32(self.width % self.tile.lanes)))
        else:
            count = T.cast(self.width % self.tile.lanes, "int32")
            emit.branch(count > 0, lambda: body(self._vector(self.whole, count)))


class Vector:
    """One vector of a row: the elements from ``column`` on, ``count`` of them or (None) a whole vector."""

    def __init__(self, tile: FloatTile, column: Expr | int, count: Expr | None = None) -> None:
        self.tile, self.column, self.count = tile, column, count

    @property
    def whole(self) -> Vector:
        """The same place without the end: for scratch buffers, which are padded to whole vectors.

        A masked access goes through an address, and TVM shrinks a buffer of its own to the elements it sees accessed.
        """
        return Vector(self.tile, self.column)

    def load(self, buffer: Expr, *outer: Expr, column: Expr | int = 0) -> Expr:
        """These elements of float32 ``buffer[outer]``, from its ``column`` on; 0 past the end of the row."""
        at = [*outer, self.column + column]
        if self.count is None:
            return emit.load(buffer, at, self.tile.lanes)
        return self.tile.load_first(T.address_of(buffer[tuple(at)]), self.count)

    def store(self, buffer: Expr, value: Expr, *outer: Expr) -> None:
        """Emit the store of ``value`` to these elements of ``buffer[outer]``."""
        at = [*outer, self.column]
        if self.count is None:
            emit.store(buffer, at, value, self.tile.lanes)
        else:
            self.tile.store_first(T.address_of(buffer[tuple(at)]), value, self.count)

    def within(self, value: Expr, outside: float) -> Expr:
        """``value`` with ``outside`` in the lanes past the end of the row."""
        if self.count is None:
            return value
        lane = T.ramp(T.int32(0), 1, self.tile.lanes)
        inside = lane < T.broadcast(self.count, self.tile.lanes)
        return tirx.Select(inside, value, self.tile.broadcast(T.float32(outside)))


def padded(size: int, lanes: int) -> int:
    """``size`` rounded up to whole vectors."""
    return -(-size // lanes) * lanes


def across(vector: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """The lanes of a vector combined pairwise, each half with the other, down to a scalar."""
    lanes = math.lanes_of(vector)
    while lanes > 1:
        vector, lanes = math.hold(vector), lanes // 2
        low, high = (tirx.Shuffle([vector], [T.int32(half * lanes + i) for i in range(lanes)]) for half in (0, 1))
        vector = combine(low, high) if lanes > 1 else combine(math.hold(low), math.hold(high))
    return vector


def storage(dtype: str, what: str) -> str:
    """The buffer dtype of a logical float dtype.

    Raises:
        ValueError: when there is none.
    """
    if dtype not in STORAGE_DTYPES:
        raise ValueError(f"{what} of {dtype} are not supported: use one of {', '.join(STORAGE_DTYPES)}")
    kept: str = STORAGE_DTYPES[dtype]
    return kept
