"""Positions counted over a padding mask; without one they are computed where they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Site
from planish.codegen.kernels import positions as kernels
from planish.ir import Node
from planish.ir.ops import Positions


@emitted_once
def _prim_func(config: kernels.Positions) -> Any:
    return kernels.positions(config)


class PositionsFamily(Family):
    """One pass over each row."""

    name: ClassVar[str] = "positions"
    ops: ClassVar[frozenset[str]] = frozenset({"positions"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        start, padding = node.inputs
        op = node.op
        assert isinstance(op, Positions)
        if padding is None:
            return "without padding they are computed where they are read"
        mask = str(padding.type.dtype).removeprefix("torch.")
        config = kernels.Positions(mask, start is not None, op.padding_value)

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            inputs = [o for o in operands if o is not None]
            return to.call(_prim_func(config), inputs, [(node.output.type.shape, "int64")])

        tokens = product(node.output.type.shape)
        reads = (1,) if start is None else (0, 1)
        return Kernel(self.name, "a row at a time", reads, emit, traffic=9 * tokens, work=tokens)
