"""Linear layer with a 4-bit grouped weight and int8 activations that carry one scale per row; rows known at run time.

``y[m, n] = x_scale[m] * sum_g w_scale[n, g] * dot(m, n, g) (+ bias[n])``, where ``dot(m, n, g)`` is the exact integer
``sum over k in group g of x_codes[m, k] * q[n, k]``, q in [-8, 7]. In float32 and in this order:

    t = +0;  t = fma(dot(m, n, g), w_scale[n, g], t) for g = 0, 1, ...;  y = t * x_scale[m], or fma(t, x_scale[m], bias[n])

The dot products are exact as float32 too (at most 128 * 127 * group, below 2^24 for groups up to 1032), so this chain
alone rounds, and it names no tile: a row of y has the same bits whatever the number of rows, the machine's tile or the
number of threads.

Where the instruction wants unsigned weights, codes u = q + 8 are stored and enter the dot products as they are:
``sum x q = sum x u - 8 sum x``, and the second sum, one number per row and group, is where accumulators start. Where it
wants signed ones, q is stored in two's complement, and a shift or a mask leaves it in the high half of a byte, which then
holds 16 q; a sixteenth of the sum, exact as a float, is the dot product.

One function serves every number of rows. A panel of the weight is streamed once per task and unpacked in registers;
up to ``rows`` rows share every load. With more rows, a task keeps a few panels in cache while all rows pass over them.
The arithmetic of one block can fill the processor's window, and it would then ask memory for the next block too late,
so each load also requests the bytes that are due some time later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_int4_packing import SCALE_BYTES, Int4Layout
from planish.codegen.tiles.float import STORAGE_DTYPES, Expr
from planish.codegen.tiles.int8 import Int8Tile

ZERO_CODE = 8
"""The stored code of a weight of 0, where codes are unsigned."""
SHIFT = 4
"""The power of two that signed codes are multiplied with by lying in the high half of a byte."""


@dataclass(frozen=True)
class LinearInt4:
    """One 4-bit linear kernel: the problem first, then how it is cut.

    Attributes:
        in_features, out_features: K and N.
        group: input features that share a scale; divides K.
        scale_dtype: logical dtype of the weight's scales: float32, float16 or bfloat16.
        bias: whether the kernel takes a float32 bias (N,).
        tile: the machine's dot products.
        rows, vectors: largest register tile, in rows of x and in vectors of columns; a panel has ``vectors`` vectors.
        task_panels: panels in one task of one thread when there are more than ``rows`` rows.
        steps: loads of a vector of columns that are unrolled; a block that has more is a loop over at most so many.
        prefetch: bytes of the weight requested ahead of their use; 0 for none.
    """

    in_features: int
    out_features: int
    group: int
    scale_dtype: str
    bias: bool
    tile: Int8Tile
    rows: int
    vectors: int
    task_panels: int = 2
    steps: int = 4
    prefetch: int = 8192

    def __post_init__(self) -> None:
        if (
            min(self.in_features, self.out_features, self.group, self.rows, self.vectors, self.task_panels, self.steps)
            < 1
        ):
            raise ValueError(f"every size of a 4-bit linear kernel must be at least 1: {self}")
        if self.group * 128 * 127 >= 1 << 24:
            raise ValueError(f"groups of {self.group} sum to integers that float32 does not hold: use at most 1024")
        _ = self.packed_shape

    @property
    def layout(self) -> Int4Layout:
        """The layout of the packed weight."""
        signed = not self.tile.unsigned_weights
        return Int4Layout(self.group, self.tile.lanes, self.tile.depth, self.vectors, self.scale_dtype, signed)

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Shape of the packed weight, uint8: (panels * groups, bytes of a block)."""
        return self.layout.packed_shape(self.out_features, self.in_features)


def pack_weight(config: LinearInt4, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``values`` uint8 (N, K / 2) and ``scales`` (N, K / group) in the layout the kernel of ``config`` reads.

    Raises:
        ValueError: when shapes or dtypes are not those of ``config``.
    """
    if tuple(values.shape) != (config.out_features, config.in_features // 2):
        raise ValueError(
            f"this 4-bit linear kernel packs values of shape ({config.out_features}, {config.in_features // 2}), "
            f"not {tuple(values.shape)}"
        )
    return config.layout.pack(values, scales)


def configurations(
    tile: Int8Tile, in_features: int, out_features: int, group: int, scale_dtype: str, bias: bool
) -> list[LinearInt4]:
    """The kernels worth trying for one layer on one machine; the first is the best guess."""
    if tile.lanes <= 4:
        # Short vectors: several side by side hide the latency of a dot product where there is one row.
        shapes = [(4, 4), (3, 4), (2, 8), (6, 2)]
    elif tile.floats.registers >= 32:
        shapes = [(6, 2), (5, 2), (12, 1), (8, 1)]
    else:
        shapes = [(4, 1), (6, 1), (2, 2), (3, 1)]
    return [
        LinearInt4(in_features, out_features, group, scale_dtype, bias, tile, rows, vectors, panels, prefetch=prefetch)
        for rows, vectors in shapes
        for panels in (2, 4, 1)
        for prefetch in (8192, 4096, 16384)
    ]


class _Block(NamedTuple):
    """Positions in the packed weight: of the block to read now, and of one to request for later."""

    this: Expr
    later: Expr | None


class _Kernel:
    """The arguments of one kernel and the parts of its body."""

    def __init__(self, config: LinearInt4) -> None:
        self.config, self.tile, self.floats = config, config.tile, config.tile.floats
        self.layout = config.layout
        self.panels, self.groups = self.layout.panels(config.out_features), config.in_features // config.group
        self.rows = emit.symbol("rows")
        self.codes = emit.argument("x_codes", (self.rows, config.in_features), "int8")
        self.x_scale = emit.argument("x_scale", (self.rows, 1), "float32")
        self.weight = emit.argument("weight", config.packed_shape, "uint8")
        self.bias = emit.argument("bias", (config.out_features,), "float32") if config.bias else None
        self.y = emit.argument("y", (self.rows, config.out_features), "float32")
        self.starts: Expr | None = None

    def body(self) -> None:
        if self.tile.unsigned_weights:
            self.starts = emit.scratch("starts", self.rows * self.groups, "int32")
            self._sum_codes(self.starts)
        config = self.config
        # As few row tiles as possible, and as even: a tile of one row costs nearly as much as one of four.
        tiles = emit.bind("tiles", emit.ceil_div(self.rows, config.rows))
        # One row tile reads every panel once, so tasks may be as fine as panels; with more, panels wait in cache.
        together = emit.bind("together", T.Select(tiles <= 1, emit.index(1), emit.index(config.task_panels)))
        with emit.tasks("task", emit.ceil_div(self.panels, together)) as task:
            first = emit.bind("first", task * together)
            panels = emit.bind("panels", T.min(self.panels - first, together))
            with emit.loop("tile", tiles) as tile:
                start = emit.bind("start", tile * self.rows // tiles)
                height = emit.bind("height", (tile + 1) * self.rows // tiles - start)
                self._row_tile(config.rows, height, start, first, panels)

    def _row_tile(self, candidate: int, height: Expr, start: Expr, first: Expr, panels: Expr) -> None:
        """Rows ``start ... start + height - 1`` of y in some panels, ``height`` being at most ``candidate``."""

        def this() -> None:
            with emit.loop("panel", panels) as panel:
                self._register_tile(candidate, start, first + panel)

        if candidate == 1:
            this()
        else:
            emit.branch(height == candidate, this, lambda: self._row_tile(candidate - 1, height, start, first, panels))

    def _sum_codes(self, starts: Expr) -> None:
        """Emit ``starts[row, group] = -ZERO_CODE * sum of the row's codes in the group``."""
        with emit.loop("row", self.rows) as row, emit.loop("group", self.groups) as group:
            total = emit.scratch("total", 1, "int32")
            T.buffer_store(total, T.int32(0), [0])
            with emit.loop("k", self.config.group) as k:
                code = T.cast(self.codes[row, group * self.config.group + k], "int32")
                T.buffer_store(total, total[0] + code, [0])
            T.buffer_store(starts, total[0] * -ZERO_CODE, [row * self.groups + group])

    def _register_tile(self, height: int, start: Expr, panel: Expr) -> None:
        """Rows ``start ... start + height - 1`` of y in the columns of one panel."""
        lanes, vectors = self.tile.lanes, self.config.vectors
        sums = emit.scratch("sums", height * vectors * lanes)
        cells = [(row, v, (row * vectors + v) * lanes) for row in range(height) for v in range(vectors)]
        for _, _, at in cells:
            emit.store(sums, [at], self.floats.broadcast(T.float32(0)), lanes)
        with emit.loop("group", self.groups) as group:
            block = self._block(panel, group)
            dots = self._dots(height, start, block, group)
            scales = [self._scales(block, v) for v in range(vectors)]
            for row, v, at in cells:
                dot = self.tile.scaled(dots[row][v], 0 if self.tile.unsigned_weights else SHIFT)
                emit.store(sums, [at], self.floats.fma(dot, scales[v], emit.load(sums, [at], lanes)), lanes)
        for row, v, at in cells:
            self._store(start + row, panel * self.layout.columns + v * lanes, emit.load(sums, [at], lanes))

    def _dots(self, height: int, start: Expr, block: _Block, group: Expr) -> list[list[Expr]]:
        """The integer sums of one block, ``[row][vector of columns]``."""
        lanes, vectors, steps = self.tile.lanes, self.config.vectors, self.layout.steps
        initial = []
        for row in range(height):
            first = T.int32(0) if self.starts is None else self.starts[(start + row) * self.groups + group]
            initial.append([T.bind(T.broadcast(first, lanes))] * vectors)
        unrolled = max(count for count in range(1, self.config.steps + 1) if steps % count == 0)
        if unrolled == steps:
            return self._segment(initial, start, block, group, range(steps))
        # A block of many steps is a loop, lest the code of all register tiles outgrow the instruction cache.
        sums = emit.scratch("dots", height * vectors * lanes, "int32")
        cells = [(row, v, (row * vectors + v) * lanes) for row in range(height) for v in range(vectors)]
        for row, v, at in cells:
            emit.store(sums, [at], initial[row][v], lanes)
        loaded = [
            [emit.load(sums, [(row * vectors + v) * lanes], lanes) for v in range(vectors)] for row in range(height)
        ]
        with emit.loop("segment", steps // unrolled) as segment:
            taken = [segment * unrolled + step for step in range(unrolled)]
            after = self._segment(loaded, start, block, group, taken)
            for row, v, at in cells:
                emit.store(sums, [at], after[row][v], lanes)
        return loaded

    def _segment(
        self, initial: list[list[Expr]], start: Expr, block: _Block, group: Expr, steps: Sequence[Expr | int]
    ) -> list[list[Expr]]:
        """``initial`` plus the products of some steps of one block."""
        depth, vectors = self.tile.depth, self.config.vectors
        bound = 2 * ZERO_CODE - 1 if self.tile.unsigned_weights else ZERO_CODE << SHIFT
        dots = [[self.tile.accumulator(value, bound) for value in row] for row in initial]
        # Steps that share one load of a row's codes.
        together = max(1, self.tile.taken // (2 * depth))
        together = together if len(steps) % together == 0 else 1
        for number, step in enumerate(steps):
            if number % together == 0:
                k = group * self.config.group + 2 * depth * step
                taken = [self._codes(start + row, k, 2 * together) for row in range(len(dots))]
            halves = [self._unpack(block, step, v) for v in range(vectors)]
            for half in range(2):
                for row, accumulators in enumerate(dots):
                    spread = taken[row](2 * (number % together) + half)
                    for v in range(vectors):
                        accumulators[v].add(halves[v][half], spread)
        return [[accumulator.value() for accumulator in row] for row in dots]

    def _codes(self, row: Expr, k: Expr, parts: int) -> Callable[[int], Expr]:
        """A row's codes from ``k`` on in parts of one step each: from a part's number to the codes, in every lane."""
        lanes, depth = self.tile.lanes, self.tile.depth
        whole = None
        if parts * depth == self.tile.taken:
            whole = T.bind(T.reinterpret(f"int{8 * depth}x{parts}", emit.load(self.codes, [row, k], parts * depth)))

        def spread(part: int) -> Expr:
            if whole is None:
                one = T.reinterpret(f"int{8 * depth}", emit.load(self.codes, [row, k + part * depth], depth))
                every = T.broadcast(one, lanes)
            else:
                every = tirx.Shuffle([whole], [T.int32(part)] * lanes)
            return T.bind(T.reinterpret(f"int8x{lanes * depth}", every))

        return spread

    def _unpack(self, block: _Block, step: Expr | int, v: int) -> tuple[Expr, Expr]:
        """Both weight operands that one load of packed bytes holds, as the instruction takes them."""
        size = self.layout.vector_bytes
        packed = T.bind(self._packed(block, (step * self.config.vectors + v) * size, size))
        four = T.broadcast(T.uint8(4), size)
        if self.tile.unsigned_weights:
            low, high = T.bitwise_and(packed, T.broadcast(T.uint8(0x0F), size)), T.shift_right(packed, four)
            return T.bind(low), T.bind(high)
        low, high = T.shift_left(packed, four), T.bitwise_and(packed, T.broadcast(T.uint8(0xF0), size))
        return T.bind(T.reinterpret(f"int8x{size}", low)), T.bind(T.reinterpret(f"int8x{size}", high))

    def _block(self, panel: Expr, group: Expr) -> _Block:
        """Where to read one block, and where the one that is due ``config.prefetch`` bytes later lies."""
        this = emit.bind("block", panel * self.groups + group)
        if self.config.prefetch == 0:
            return _Block(this, None)
        distance, last = -(-self.config.prefetch // self.layout.block_bytes), self.panels * self.groups - 1
        return _Block(this, emit.bind("later", T.min(this + distance, emit.index(last))))

    def _packed(self, block: _Block, byte: Expr | int, size: int) -> Expr:
        """``size`` bytes of a block, after a request for those in the same place of the later one."""
        if block.later is not None:
            emit.prefetch(self.weight, [block.later, byte])
        return emit.load(self.weight, [block.this, byte], size)

    def _scales(self, block: _Block, v: int) -> Expr:
        """The scales of one vector of columns in one block, as float32."""
        size = self.tile.lanes * SCALE_BYTES[self.config.scale_dtype]
        stored = self._packed(block, self.layout.value_bytes + v * size, size)
        vector = T.reinterpret(f"{STORAGE_DTYPES[self.config.scale_dtype]}x{self.tile.lanes}", stored)
        return T.bind(self.floats.widen(vector, self.config.scale_dtype))

    def _store(self, row: Expr, column: Expr, sums: Expr) -> None:
        """Emit the last step for one vector of columns, leaving out those past the end."""
        lanes, scale = self.tile.lanes, self.floats.broadcast(self.x_scale[row, 0])
        left = T.cast(T.min(self.config.out_features - column, emit.index(lanes)), "int32")
        whole = self.config.out_features % self.layout.columns == 0
        if self.bias is None:
            value = sums * scale
        elif whole:
            value = self.floats.fma(sums, scale, emit.load(self.bias, [column], lanes))
        else:
            value = self.floats.fma(sums, scale, self.floats.load_first(T.address_of(self.bias[column]), left))
        if whole:
            emit.store(self.y, [row, column], value, lanes)
        else:
            self.floats.store_first(T.address_of(self.y[row, column]), value, left)


def linear_int4(config: LinearInt4) -> Any:
    """The PrimFunc ``(x_codes (M, K) int8, x_scale (M, 1), weight (packed), [bias (N,)], y (M, N))`` of ``config``.

    x_scale, bias and y are float32; codes are in [-127, 127]; M is any number.
    """
    return emit.prim_func("linear_int4", lambda: _Kernel(config).body())
