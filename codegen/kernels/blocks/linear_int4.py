"""The 4-bit linear layer of `kernels/linear_int4.py` in blocks of threads: exact integer products by tensor cores.

The weight is the left operand, 16 output features at a time, and rows of x are the columns of the right one, 8 at a time.
Every lane unpacks the operands it needs from the words of the weight that are its own (`linear_int4_packing.py`). Sums over a
group are exact; each group's sum, as a float, is scaled and added in float32.

Few rows (`linear_int4_few.py`): the warps of a block share the chunks of a panel and add up at the end, in the order of the
warps; each lane keeps the loads of several chunks in flight, since memory is all that is waited for. Many rows
(`linear_int4_tile.py`; `linear_int4_many.py`, and `linear_int4_groups.py` where warps multiply in groups): a block takes 8
panels and up to 256 rows, which pass through shared memory in several stages. More than 64 rows by short groups
(`linear_int4_planes.py`): products are of the scaled weight, in two bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_int4_few import FewRows
from planish.codegen.kernels.blocks.linear_int4_groups import GroupRows
from planish.codegen.kernels.blocks.linear_int4_layer import BlockLinearInt4, Layer
from planish.codegen.kernels.blocks.linear_int4_many import ManyRows
from planish.codegen.kernels.blocks.linear_int4_planes import PlaneRows
from planish.codegen.kernels.blocks.linear_int4_tile import RowTile


def linear_int4(config: BlockLinearInt4) -> Any:
    """The PrimFunc ``(x_codes (M, K) int8, x_scale (M, 1), weight (packed), [bias (N,)], y (M, N))`` of ``config``.

    x_scale, bias and y are float32; codes are in [-127, 127]; M is any number.
    """

    def body() -> None:
        layer = Layer(config)

        def from_few(number: int) -> None:
            if number == len(config.few):
                from_many()
                return
            rows, tiles = config.few[number]
            few = FewRows(layer, tiles)
            emit.branch(layer.rows <= rows, few.emit, lambda: from_few(number + 1))

        def from_many() -> None:
            kind = GroupRows if config.groups else ManyRows
            scaled = partial(_least, [kind(layer, tiles) for tiles in config.tiles])
            planes = partial(_least, [PlaneRows(layer, *tile) for tile in config.planes])
            emit.branch(layer.rows <= config.scaled if config.planes else True, scaled, planes)

        from_few(0)

    return emit.prim_func("linear_int4", body)


def _least(tiles: Sequence[RowTile]) -> None:
    """The tile whose blocks take the least time."""
    times = [tile.time for tile in tiles]

    def choose(number: int) -> None:
        later = times[number + 1 :]
        if not later:
            tiles[number].emit()
            return
        least = reduce(T.And, [times[number] <= time for time in later])
        emit.branch(least, tiles[number].emit, lambda: choose(number + 1))

    choose(0)
