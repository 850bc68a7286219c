"""What the schedules of the 4-bit linear layer for many rows share: a tile of 8 panels and some rows to a block.

Chunks of the packed weight and of the codes pass through shared memory in several stages, so that what is on its way needs
no registers: while the products of one chunk are formed, the next few come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_layer import COLUMNS, MANY_PANELS, VECTOR, Layer
from planish.codegen.simt.block import WARP, Block, Registers, rounded_bytes
from planish.codegen.tiles.float import Expr

BESIDES = 2
"""What a block does besides its products, in the time of 8 rows: it unpacks the weight."""


class RowTile(ABC):
    """A tile of `tiles` times 8 rows; in shared memory a row's codes begin `stride` bytes behind those of the row before.

    Attributes:
        ahead: how many chunks are asked for before they are needed.
    """

    def __init__(self, layer: Layer, tiles: int, stride: int, beside: int = 0) -> None:
        """With `beside` bytes of shared memory beside the stages."""
        self.layer, self.config, self.layout, self.stride = layer, layer.config, layer.config.layout, stride
        self.threads, self.rows, self.beside = MANY_PANELS * WARP, tiles * COLUMNS, beside
        self.codes_bytes, self.weight_bytes = self.rows * stride, MANY_PANELS * self.layout.chunk_bytes
        self.scale_words = layer.scale_words * self.layout.segments
        stage = rounded_bytes(self.codes_bytes, "int8") + rounded_bytes(self.weight_bytes, "uint8")
        self.stages = min(self.config.stages, (self.config.shared_bytes - beside) // stage)
        self.ahead = self.stages - 1

    @property
    def time(self) -> Expr:
        """How long all blocks take, as many after another as multiprocessors leave over; comparable for tiles of a kind."""
        down, across = self.grid
        return emit.ceil_div(down * across, self.config.multiprocessors) * (self.rows // COLUMNS + BESIDES)

    @property
    def grid(self) -> tuple[Expr, ...]:
        """Blocks along the rows and along the panels."""
        return emit.ceil_div(self.layer.rows, self.rows), emit.ceil_div(self.layout.panels, MANY_PANELS)

    def emit(self) -> None:
        stages = self.stages
        shared = rounded_bytes(stages * self.codes_bytes, "int8") + rounded_bytes(stages * self.weight_bytes, "uint8")
        emit.launch(self.grid, self.threads, self.tile, shared + self.beside)

    @abstractmethod
    def tile(self, block: Block) -> None:
        """Emit what a block does."""

    def piece(self, line: Expr, number: Expr) -> Expr:
        """Where in shared memory, from its stage on, piece `number` of VECTOR bytes of a row lies."""
        return line * self.stride + number * VECTOR

    def allocate(self, block: Block) -> None:
        """The stages. Codes come first, since group products want them to begin at a multiple of eight lines."""
        self.shared_codes = block.shared("codes", self.stages * self.codes_bytes, "int8")
        self.shared_weight = block.shared("weight", self.stages * self.weight_bytes, "uint8")

    def clear(self, block: Block, *sums: Registers) -> None:
        """Make all sums zero."""
        with block.phase():
            for each in sums:
                for number in range(each.size):
                    each[number] = T.cast(T.int32(0), each.dtype)

    def begin(self, block: Block, sums: Registers) -> None:
        """Clear the sums, and ask for the first chunks."""
        self.clear(block, sums)
        for stage in range(self.ahead):
            if stage < self.layout.chunks:
                self._copy(block, emit.index(stage), emit.index(stage))
            block.commit()

    def copy_ahead(self, block: Block, chunk: Expr) -> None:
        """Ask for a later chunk, which takes the place of one that every thread is done with."""
        ahead = chunk + self.ahead
        emit.branch(ahead < self.layout.chunks, lambda: self._copy(block, ahead, ahead % self.stages))
        block.commit()

    def _copy(self, block: Block, chunk: Expr, stage: Expr) -> None:
        """Begin to copy a chunk of the block's rows and of its panels."""
        layout = self.layout
        of_row, of_panel = layout.chunk // VECTOR, layout.chunk_bytes // VECTOR

        def copy_codes(number: Expr) -> None:
            line, piece = number // of_row, number % of_row
            # Rows and panels past the end read the last one again; what they compute is stored nowhere.
            row = T.min(block.index[0] * self.rows + T.cast(line, "int64"), self.layer.rows - 1)
            at = stage * self.codes_bytes + T.cast(self.piece(line, piece), "int64")
            source = (row, chunk * layout.chunk + T.cast(piece * VECTOR, "int64"))
            block.copy_async(self.shared_codes, at, self.layer.codes, source)

        def copy_weight(number: Expr) -> None:
            line, place = number // of_panel, T.cast(number % of_panel * VECTOR, "int64")
            panel = T.min(block.index[1] * MANY_PANELS + T.cast(line, "int64"), emit.index(layout.panels - 1))
            at = stage * self.weight_bytes + T.cast(line * layout.chunk_bytes, "int64") + place
            block.copy_async(self.shared_weight, at, self.layer.weight, (panel * layout.chunks + chunk, place))

        with block.phase() as thread:
            for copy, count in ((copy_weight, MANY_PANELS * of_panel), (copy_codes, self.rows * of_row)):
                for turn in range(-(-count // self.threads)):
                    number = turn * self.threads + thread
                    whole = (turn + 1) * self.threads <= count
                    emit.branch(True if whole else number < count, partial(copy, number))
