"""Linear layer with a 4-bit grouped weight and int8 activations that carry one scale per row; rows known at run time.

``y[m, n] = x_scale[m] * sum_g w_scale[n, g] * dot(m, n, g) (+ bias[n])``, where ``dot(m, n, g)`` is the exact integer
``sum over k in group g of x_codes[m, k] * q[n, k]``, q in [-8, 7]. In float32 and in this order:

    t = +0;  t = fma(dot(m, n, g), w_scale[n, g], t) for g = 0, 1, ...;  y = t * x_scale[m], or fma(t, x_scale[m], bias[n])

The dot products are exact as float32 too, so this chain alone rounds, and it names no tile: a row of y has the same bits
whatever the number of rows, the machine's tile or the number of threads.

Codes u = q + 8 are stored and enter the products as they are: ``sum x q = sum x u - 8 sum x``, and the second sum, one
number per row and group, is where accumulators start.

One function serves every number of rows: few of them stream the weight (`linear_int4_few`), many pass over panels that
were unpacked once (`linear_int4_many`), where the machine gains by that.
"""

from __future__ import annotations

from typing import Any

from planish.codegen.kernels import emit
from planish.codegen.kernels.linear_int4_config import LinearInt4
from planish.codegen.kernels.linear_int4_few import FewRows
from planish.codegen.kernels.linear_int4_many import ManyRows
from planish.codegen.kernels.linear_int4_operands import Operands


def linear_int4(config: LinearInt4) -> Any:
    """The PrimFunc ``(x_codes (M, K) int8, x_scale (M, 1), weight (packed), [bias (N,)], y (M, N))`` of ``config``.

    x_scale, bias and y are float32; codes are in [-127, 127]; M is any number.
    """

    def body() -> None:
        operands = Operands(config)
        # Pairs of rows must fill a register tile, the last pair perhaps by half.
        few = operands.rows <= config.many - config.block_rows if config.many else True
        emit.branch(few, lambda: FewRows(operands).body(), lambda: ManyRows(operands).body())

    return emit.prim_func("linear_int4", body)
