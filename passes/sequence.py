"""The sequence-axis analysis: along which axis each value carries the positions of a sequence, and who mixes them.

Every operation is classified by its own axis rule: *pointwise* over positions when each sequence axis of its operands is
tied to one axis of its results, a *source* (`positions`), a known *mixer* (`attention`), or *unknown*. Nothing is assumed
about an operation without a rule; the caller refuses, naming it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planish.ir.module import Function, Node, Value
from planish.ir.ops import Aten, Attention, Positions
from planish.ir.types import TensorType

# ATen calls that fill a shape with one value: the same at every position, whatever the shape.
_UNIFORM = frozenset({"full.default", "zeros.default", "ones.default", "expand.default", "full_like.default"})


@dataclass(frozen=True)
class SequenceAxes:
    """The outcome: the sequence axis of every value that carries one, and what could not be classified.

    `unknown` pairs nodes with a sentence each; it is empty when every node is pointwise, a source or a known mixer.
    """

    axis: Mapping[Value, int]
    unknown: tuple[tuple[Node, str], ...]

    def carries(self, operand: object) -> bool:
        return isinstance(operand, Value) and operand in self.axis


def sequence_axes(function: Function, inputs: Mapping[Value, int], symbol: str) -> SequenceAxes:
    """Follow the sequence axis from `inputs` (value -> its axis) through a function.

    `symbol` is the name of the dimension that counts positions; an operation that reads it in its attributes without
    reading a sequence makes positions out of nothing and is unknown unless it fills with one value.
    """
    axis = dict(inputs)
    unknown: list[tuple[Node, str]] = []
    for node in function.nodes:
        sentence = _classify(node, axis, symbol)
        if sentence is not None:
            unknown.append((node, sentence))
    return SequenceAxes(axis, tuple(unknown))


def _classify(node: Node, axis: dict[Value, int], symbol: str) -> str | None:
    """Record the axes of a node's results; a sentence when it is unknown."""
    if isinstance(node.op, Positions):
        axis[node.output] = 1
        return None
    carried = [(n, axis[i]) for n, i in enumerate(node.inputs) if isinstance(i, Value) and i in axis]
    if isinstance(node.op, Attention):
        return _attention(node, dict(carried), axis)
    if not carried:
        makes = any(symbol in v.type.symbols for v in node.outputs) and not _reads_symbol(node.inputs, symbol)
        if makes and not (isinstance(node.op, Aten) and node.op.overload in _UNIFORM):
            return "makes a tensor along the sequence from its length alone"
        return None
    rule = node.op.axes(*node.input_types)
    if rule is None:
        return "declares no axis rule, so it may mix positions"
    found: dict[int, int] = {}
    for operand, operand_axis in carried:
        tied = rule.results_of(operand, operand_axis)
        if not tied:
            return f"mixes positions of its operand {operand}"
        for result, result_axis in tied:
            if found.setdefault(result, result_axis) != result_axis:
                return "pairs positions with each other"
    for result, result_axis in found.items():
        axis[node.outputs[result]] = result_axis
    return None


def _attention(node: Node, carried: Mapping[int, int], axis: dict[Value, int]) -> str | None:
    """Attention mixes over keys by its description; a bias tensor hides how, so it is not known."""
    q, k, v = 0, 1, 2
    if any(carried.get(n) != 1 for n in (q, k, v)):
        return "attends over something other than the sequence"
    if node.inputs[8] is not None:
        return "has a bias tensor over positions that is not described by its mask"
    assert isinstance(node.op, Attention)
    if not node.op.causal:
        return "is not causal: earlier positions read later ones"
    axis[node.output] = 1
    return None


def _reads_symbol(operands: Iterable[object], symbol: str) -> bool:
    types = (getattr(o, "type", None) for o in operands)
    return any(isinstance(t, TensorType) and symbol in t.symbols for t in types)
