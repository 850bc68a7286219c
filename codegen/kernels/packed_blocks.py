"""Reading a weight that was packed in blocks (`linear_low_bit_packing.BlockLayout`), ahead of its use."""

from __future__ import annotations

from typing import NamedTuple

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_packing import BlockLayout
from planish.codegen.tiles.float import Expr


class Block(NamedTuple):
    """Positions in the packed weight: of the block to read now, and of one to request for later; `once` if no block is read
    a second time."""

    this: Expr
    later: Expr | None
    once: bool


class PackedBlocks:
    """The blocks of some panels of so many groups in a buffer; ``prefetch`` bytes are requested ahead, 0 for none."""

    def __init__(self, buffer: Expr, layout: BlockLayout, panels: int, groups: int, prefetch: int) -> None:
        self.buffer, self.layout, self.panels, self.groups, self.prefetch = buffer, layout, panels, groups, prefetch

    def block(self, panel: Expr, group: Expr, once: bool) -> Block:
        """Where to read one block, and where the one that is due ``prefetch`` bytes later lies."""
        this = emit.bind("block", panel * self.groups + group)
        if self.prefetch == 0:
            return Block(this, None, once)
        distance, last = -(-self.prefetch // self.layout.block_bytes), self.panels * self.groups - 1
        return Block(this, emit.bind("later", T.min(this + distance, emit.index(last))), once)

    def read(self, block: Block, byte: Expr | int, size: int) -> Expr:
        """``size`` bytes of a block, after a request for those in the same place of the later one."""
        if block.later is not None:
            emit.prefetch(self.buffer, [block.later, byte], block.once)
        return emit.load(self.buffer, [block.this, byte], size)
