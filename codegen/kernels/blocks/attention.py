"""Attention in blocks of threads: which of its schedules a call takes. The meaning is that of `kernels/attention.py`.

Few queries are attended to with keys cut in parts, so that there are blocks for the whole machine; many queries in tiles,
whose keys are cut too where the tiles alone are too few. Bits depend on the parts, and so on sizes of the call.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.attention import Attention, Operands
from planish.codegen.kernels.blocks.attention_decode import KEYS, Slice, attend_in_slices
from planish.codegen.kernels.blocks.attention_parts import Partials, combine
from planish.codegen.kernels.blocks.attention_tiles import attend_in_tiles
from planish.codegen.kernels.blocks.attention_tiling import Tiling, tiling_for
from planish.codegen.simt.block import WARP
from planish.codegen.target import BlockLimits
from planish.codegen.tiles.float import Expr

FEW_ROWS = 16
"""Rows of a key-value head up to which keys, not queries, are what blocks share out."""
LEAST_TILES = 4
"""Tiles of keys that a part should have where many queries read it."""


def tiling(config: Attention, limits: BlockLimits) -> Tiling | None:
    """How many queries are cut; None where a head is too large for any cut."""
    cut = Slice(config)
    return tiling_for(config, limits.shared_bytes) if cut.shared_bytes <= limits.shared_bytes else None


def attention(config: Attention, limits: BlockLimits) -> Any:
    """The PrimFunc of `kernels.attention.attention`: the same arguments, for a cache of one lane that begins at a multiple
    of 16 bytes.

    Raises:
        ValueError: for heads too large for the machine.
    """
    cut, tiles = Slice(config), tiling(config, limits)
    if tiles is None:
        raise ValueError(f"heads of {config.size} and {config.value_size} elements do not fit into a block of threads")

    def body() -> None:
        operands = Operands(config)
        if operands.k is not None:
            with T.Assert(operands.panels >= operands.capacity, "attention: fewer keys than values in the cache"):
                pass
            config.keys_layout.check(operands.panels)
        config.values_layout.check(operands.capacity)
        rows, heads = operands.length * config.group, operands.batch * config.kv_heads

        def parts(block_rows: int, least: int) -> Expr:
            """Parts of the keys that occupy the machine twice over, none with fewer keys than `least` if all are seen."""
            blocks = T.max(heads * emit.ceil_div(rows, block_rows), emit.index(1))
            wanted = T.min(emit.index(2 * limits.multiprocessors) // blocks, emit.index(WARP))
            return T.max(T.min(wanted, emit.ceil_div(operands.capacity, least)), emit.index(1))

        def few() -> None:
            partials = Partials(config, operands, parts(cut.rows, KEYS))
            attend_in_slices(cut, operands, partials)
            combine(partials)

        def many() -> None:
            count = parts(tiles.block_rows, LEAST_TILES * tiles.block_keys)

            def split() -> None:
                partials = Partials(config, operands, count)
                attend_in_tiles(tiles, operands, partials)
                combine(partials)

            emit.branch(count > 1, split, lambda: attend_in_tiles(tiles, operands, None))

        emit.branch(rows <= FEW_ROWS, few, many)

    return emit.prim_func("attention", body)
