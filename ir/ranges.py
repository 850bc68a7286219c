"""Values that the inputs of a function may hold, as far as its operations limit them.

Types do not say that a token must be an entry of the embedding, or that a cache must have room. Operations declare it
(`Op.operand_ranges`); here it is carried back to the inputs, so that probes and tests draw legal values.
"""

from __future__ import annotations

from planish.ir.dims import FUNCTIONS
from planish.ir.module import Function, Value
from planish.ir.types import Dim, as_dim

# ATen operators whose results hold nothing but elements of their first operand.
_MOVES = frozenset(
    (
        "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int unsqueeze.default "
        "squeeze.default squeeze.dim squeeze.dims expand.default transpose.int t.default permute.default slice.Tensor "
        "select.int flip.default clone.default contiguous.default alias.default detach.default to.dtype "
        "_to_copy.default type_as.default"
    ).split()
)


def input_ranges(function: Function) -> dict[str, tuple[Dim, Dim]]:
    """By name of an input, the bounds (inclusive) within which every combination of values is legal.

    Inputs that no operation limits are left out. What limits a value computed from an input by arithmetic is not carried
    back to it. Bounds may be expressions over the function's symbols.
    """
    ranges: dict[Value, tuple[Dim, Dim]] = {}
    for node in reversed(function.nodes):
        limits = dict(node.op.operand_ranges(*node.input_types))
        moved = node.op.name == "aten" and node.op.attributes()["overload"] in _MOVES
        if moved and node.outputs[0] in ranges:
            limits[0] = ranges[node.outputs[0]]
        for number, limit in limits.items():
            operand = node.inputs[number]
            if isinstance(operand, Value):
                ranges[operand] = _both(ranges.get(operand), limit)
    return {v.name: ranges[v] for v in function.inputs if v in ranges}


def _both(a: tuple[Dim, Dim] | None, b: tuple[Dim, Dim]) -> tuple[Dim, Dim]:
    """The values within both bounds."""
    return b if a is None else (_extreme("Max", a[0], b[0]), _extreme("Min", a[1], b[1]))


def _extreme(which: str, a: Dim, b: Dim) -> Dim:
    return as_dim(FUNCTIONS[which](a, b))
