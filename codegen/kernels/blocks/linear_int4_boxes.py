"""A tile of the 4-bit linear layer for many rows whose codes an engine copies, and whose results leave in lines.

The codes of a chunk are one box, with lines exchanged as group products want them and zeros for rows past the end. One thread
asks for it, and everyone waits at the gate of the stage. A panel of the weight is copied by the warp that unpacks it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, MANY_PANELS, VECTOR, Layer
from planish.codegen.kernels.blocks.linear_int4_packing import PANEL
from planish.codegen.kernels.blocks.linear_int4_tile import RowTile
from planish.codegen.simt.block import LINE, WARP, Block, rounded_bytes
from planish.codegen.tiles.float import Expr


class Stages:
    """Which of the stages is a chunk's; counted beside the loop, since a remainder is not cheap beside the products."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._stage, self._turn = (IRBuilder.name(name, current().buffer((1,), "int32")) for name in ("stage", "turn"))
        for cell in (self._stage, self._turn):
            T.buffer_store(cell, T.int32(0), [0])

    def of(self, ahead: int) -> Expr:
        """The stage of so many chunks after the current one, fewer than there are stages."""
        now = self._stage[0]
        return T.Select(now < self.count - ahead, now + ahead, now - (self.count - ahead)) if ahead else now

    def turn(self, ahead: int) -> Expr:
        """How many chunks had that stage before."""
        turn = self._turn[0]
        return T.Select(self._stage[0] < self.count - ahead, turn, turn + 1) if ahead else turn

    def advance(self) -> None:
        """The next chunk is the current one."""
        T.buffer_store(self._turn, self.turn(1), [0])
        T.buffer_store(self._stage, self.of(1), [0])


class BoxTile(RowTile):
    """A tile of `tiles` times 8 rows and one of `parts` parts of the chunks; a chunk must fill a line, a warp has a panel.

    Attributes:
        chunks: of a block.
        stage: which stage is the current chunk's; within a block.
    """

    def __init__(self, layer: Layer, tiles: int, parts: int, gates: int) -> None:
        """With `gates` of its own beside those of the stages."""
        beside = rounded_bytes(layer.config.stages, "uint64") + rounded_bytes(gates, "uint64")
        super().__init__(layer, tiles, LINE, beside)
        assert self.layout.chunk == LINE and self.layout.chunks % parts == 0
        self.parts, self.chunks = parts, self.layout.chunks // parts

    @property
    def grid(self) -> tuple[Expr, ...]:
        return (*super().grid, emit.index(self.parts))

    def emit(self) -> None:
        self.box = current().box(self.layer.codes, self.rows)
        super().emit()

    def open(self, block: Block) -> None:
        """Take shared memory."""
        self.allocate(block)
        self.stage = Stages(self.stages)
        self.arrived = block.gates(self.stages, 1)

    def ask_first(self, block: Block) -> None:
        """Ask for the first chunks, when the gates are there."""
        block.barrier()
        for number in range(self.ahead):
            if number < self.chunks:
                self._ask(block, emit.index(number), T.int32(number))
            block.commit()

    def ask_ahead(self, block: Block, chunk: Expr, free: Callable[[], None]) -> None:
        """Ask for a later chunk. It takes the place of the one before this, which the thread's own warp is done with, and
        every other one behind `free`."""
        ahead = chunk + self.ahead
        later = partial(self._ask, block, ahead, self.stage.of(self.ahead), free)
        emit.branch(ahead < self.chunks, later)
        block.commit()

    def receive(self, block: Block, ahead: int) -> None:
        """Wait for a chunk that is the current one or ahead of it, when as many were asked for as are on their way."""
        block.wait(self.ahead - 1)
        block.warp_barrier()
        block.pass_gate(self.arrived, self.stage.turn(ahead), self.stage.of(ahead))

    def store(self, block: Block, value: Callable[[int], Expr], keep: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
        """``keep(value, row, column, scale of the row)`` for all elements inside of y, a warp's side by side.

        ``value(n)`` is the n-th sum of a lane: lane 4 g + r of warp w has, of every 8 rows, rows 2 r and 2 r + 1 of output
        feature g of panel w, then of feature g + 8. All products have been waited for. The sums pass through shared memory.
        """
        layer, layout, across = self.layer, self.layout, MANY_PANELS * PANEL
        # The four lanes of a feature write to banks eight apart.
        stride = across + 4
        begin = block.index[0] * self.rows
        block.barrier()
        results = block.shared_again("results", self.rows * stride + self.rows)
        scales = self.rows * stride
        with block.phase() as thread:
            lane = thread % WARP
            place = lane % 4 * 2 * stride + thread // WARP * PANEL + lane // 4
            for number in range(self.rows // 2):
                line, feature = number // 4 * COLUMNS + number % 2, number % 4 // 2 * 8
                T.buffer_store(results, value(number), [place + (line * stride + feature)])
            row = T.min(begin + T.cast(thread, "int64"), layer.rows - 1)
            load = partial(T.buffer_store, results, layer.x_scale[row, 0], [scales + thread])
            emit.branch(thread < self.rows, load)
        block.barrier()
        with block.phase() as thread, emit.unrolled("lines", self.rows // MANY_PANELS) as lines:
            line = T.cast(lines, "int32") * MANY_PANELS + thread // WARP
            row = begin + T.cast(line, "int64")
            for first in range(0, across, WARP):
                feature = thread % WARP + first
                column = block.index[1] * across + T.cast(feature, "int64")
                whole = layout.out_features % across == 0
                inside = row < layer.rows if whole else T.And(row < layer.rows, column < layout.out_features)
                element = results[line * stride + feature], row, column, results[scales + line]
                emit.branch(inside, partial(keep, *element))

    def _ask(self, block: Block, chunk: Expr, stage: Expr, free: Callable[[], None] = lambda: None) -> None:
        layout, chunk = self.layout, block.index[2] * self.chunks + chunk

        def weight(piece: Expr) -> None:
            # Panels past the end are the last one again; what is computed of them is stored nowhere.
            panel = block.index[1] * MANY_PANELS + T.cast(thread // WARP, "int64")
            panel = T.min(panel, emit.index(layout.panels - 1))
            place = piece * VECTOR
            at = T.cast(stage * self.weight_bytes + thread // WARP * layout.chunk_bytes + place, "int64")
            source = (panel * layout.chunks + chunk, T.cast(place, "int64"))
            block.copy_async(self.shared_weight, at, self.layer.weight, source)

        def codes() -> None:
            free()
            at = T.cast(stage * self.codes_bytes, "int64")
            source = (block.index[0] * self.rows, chunk * LINE)
            block.expect(self.arrived, stage, self.codes_bytes)
            block.copy_box(self.arrived, stage, self.shared_codes, at, self.box, source)

        with block.phase() as thread:
            pieces = layout.chunk_bytes // VECTOR
            for first in range(0, pieces, WARP):
                piece = thread % WARP + first
                emit.branch(True if first + WARP <= pieces else piece < pieces, partial(weight, piece))
            emit.branch(thread == 0, codes)
