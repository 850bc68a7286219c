"""The linear layer of `kernels/linear_low_bit.py` in blocks of threads, for every encoding by levels.

Sums over a group are exact integers. The chain of each output, ``t = fma(dot, scale, t)`` over groups in order, is one
thread's alone, so that a result has the bits of the processor's kernel, whatever the number of rows.

Few rows (`linear_low_bit_few.py`): the warps of a block share the groups of a panel, and what they sum goes through shared
memory to the threads that hold the chains. Many rows (`linear_low_bit_many.py`): codes become bytes in shared memory once,
for all rows of a block, and tensor cores multiply them.
"""

from __future__ import annotations

from typing import Any

from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.linear_low_bit_few import FewRows
from planish.codegen.kernels.blocks.linear_low_bit_layer import BlockLowBit, Layer
from planish.codegen.kernels.blocks.linear_low_bit_many import COLUMNS, ROWS, ManyRows

HEIGHTS = (1, 4, 8)
"""Numbers of rows for which there is a kernel that multiplies codes as it reads them."""
SCHEDULE = f"32 output features to a block for up to {HEIGHTS[-1]} rows, {COLUMNS} of them and {ROWS} rows beyond"


def linear_low_bit(config: BlockLowBit) -> Any:
    """The PrimFunc ``(x_codes (M, K) int8, x_scale (M, 1), the tensors of config.stored, [bias (N,)], y (M, N))``.

    x_scale, bias and y are float32; codes are in [-127, 127]; M is any number.
    """

    def body() -> None:
        layer = Layer(config)

        def at_most(heights: tuple[int, ...]) -> None:
            if not heights:
                ManyRows(layer).emit()
                return
            height, *higher = heights
            emit.branch(layer.rows <= height, FewRows(layer, height).emit, lambda: at_most(tuple(higher)))

        at_most(HEIGHTS)

    return emit.prim_func("linear_low_bit", body)
