"""Linear layer with a weight of few bits in groups and int8 activations that carry one scale per row; rows known at run time.

``y[m, n] = x_scale[m] * sum_g w_scale[n, g] * dot(m, n, g) (+ bias[n])``, where ``dot(m, n, g)`` is the exact integer
``sum over k in group g of x_codes[m, k] * level[n, k]``. In float32 and in this order:

    t = +0;  t = fma(dot(m, n, g), w_scale[n, g], t) for g = 0, 1, ...;  y = t * x_scale[m], or fma(t, x_scale[m], bias[n])

A dot product beyond 2^24, which only long groups of many bits have, is rounded to float32 first. Nothing here names a
tile: a row of y has the same bits whatever the number of rows, the machine's tile or the number of threads, as long as no sum
is so small that float32 rounds it to fewer bits.

A level is ``first + operand``, and operands enter the products as they are: ``sum x level = sum x operand + first sum x``,
and the second sum, one number per row and group, is where accumulators start. Zero points multiply the same sum.

One function serves every number of rows: few of them stream the weight (`linear_low_bit_few`; `linear_low_bit_one` unpacks
less), many pass over panels that were unpacked once (`linear_low_bit_many`), where the machine gains by that.
"""

from __future__ import annotations

from typing import Any

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_low_bit_config import LowBitLinear
from planish.codegen.kernels.linear_low_bit_few import FewRows
from planish.codegen.kernels.linear_low_bit_many import ManyRows
from planish.codegen.kernels.linear_low_bit_one import OneRow
from planish.codegen.kernels.linear_low_bit_operands import Operands


def linear_low_bit(config: LowBitLinear) -> Any:
    """The PrimFunc ``(x_codes (M, K) int8, x_scale (M, 1), weight (packed), [bias (N,)], y (M, N))`` of ``config``.

    x_scale, bias and y are float32; codes are in [-127, 127]; M is any number.
    """

    def body() -> None:
        operands = Operands(config)
        # Pairs of rows must fill a register tile, the last pair perhaps by half.
        few = operands.rows <= config.many - config.block_rows if config.many else True

        def several() -> None:
            emit.branch(few, lambda: FewRows(operands).body(), lambda: ManyRows(operands).body())

        sums = config.sums
        if sums is None:
            several()
        else:
            emit.branch(operands.rows == 1, lambda: OneRow(operands, sums).body(), several)

    return emit.prim_func("linear_low_bit", body)
