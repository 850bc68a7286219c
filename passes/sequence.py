"""The sequence-axis analysis: along which axis each value carries the positions of a sequence, and who mixes them.

Every operation is classified by its own axis rule: *pointwise* over positions when each sequence axis of its operands is
tied to one axis of its results, a *source* (`positions`, or an index range over the sequence), a known *mixer*
(`attention`), or *unknown*. Nothing is assumed about an operation without a rule; the caller refuses, naming it.

An index range has no axis for the rows of a batch, which all stand at the same positions where it was traced. Such values
carry the sequence along axis 0; they may be looked up in a table, take part in elementwise operations, and meet values
that have rows, so that a program whose rows stand at different positions can give them rows from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from planish.ir.module import Function, Node, Value
from planish.ir.op import Op
from planish.ir.ops import Aten, Attention, Embedding, Positions, Slot, aten
from planish.ir.ops.aten_axes import ELEMENTWISE
from planish.ir.types import TensorType, symbol
from planish.passes.graph import named_arguments

# ATen calls that fill a shape with one value: the same at every position, whatever the shape.
_UNIFORM = frozenset({"full.default", "zeros.default", "ones.default", "expand.default", "full_like.default"})


@dataclass(frozen=True)
class SequenceAxes:
    """The outcome: the sequence axis of every value that carries one, and what could not be classified.

    `unknown` pairs nodes with a sentence each; it is empty when every node is pointwise, a source or a known mixer.
    """

    axis: Mapping[Value, int]
    unknown: tuple[tuple[Node, str], ...]

    def without_rows(self, operand: object) -> bool:
        """Whether an operand is the same in all rows, and has no axis for them."""
        return isinstance(operand, Value) and self.axis.get(operand) == 0

    def carries(self, operand: object) -> bool:
        return isinstance(operand, Value) and operand in self.axis


def sequence_axes(function: Function, inputs: Mapping[Value, int], symbol: str) -> SequenceAxes:
    """Follow the sequence axis from `inputs` (value -> its axis) through a function.

    `symbol` is the name of the dimension that counts positions; an operation that reads it in its attributes without
    reading a sequence makes positions out of nothing and is unknown unless it fills with one value or counts from 0.
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
    if counts(node, symbol):
        axis[node.output] = 0
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
    if any(a == 0 for _, a in carried) and (with_rows(node) is None or not _meets_rows(node, carried, found)):
        return "does more with positions that are the same in all rows than look them up or meet rows with them"
    for result, result_axis in found.items():
        axis[node.outputs[result]] = result_axis
    return None


def counts(node: Node, length: str) -> bool:
    """Whether a node makes the index range 0, 1, ... over the whole sequence, as i64[length]."""
    if not isinstance(node.op, Aten) or not node.op.overload.startswith("arange.") or node.output.type.rank != 1:
        return False
    arguments = named_arguments(node.op, node.inputs)
    plain = arguments.get("start", 0) == 0 and arguments.get("step", 1) == 1
    return plain and node.output.type == TensorType(torch.int64, (symbol(length),))


def with_rows(node: Node) -> Op | None:
    """The operation that means the same as a node's when what it reads without rows has a leading axis of rows; None when
    none is known."""
    if isinstance(node.op, Embedding):
        return node.op
    if not isinstance(node.op, Aten):
        return None
    if node.op.overload == "unsqueeze.default":
        axis = int(node.op.arguments[1]) % node.output.type.rank
        # A new first axis is the axis of rows, which is there already.
        return aten("alias.default", Slot(0)) if axis == 0 else aten("unsqueeze.default", Slot(0), axis + 1)
    # Operands align from the right, so that a new leading axis meets nothing but rows (see `_meets_rows`).
    return node.op if node.op.overload in ELEMENTWISE else None


def _meets_rows(node: Node, carried: Sequence[tuple[int, int]], found: Mapping[int, int]) -> bool:
    """Whether the results still have no rows, or have got them as their first axis."""
    for result, result_axis in found.items():
        type = node.outputs[result].type
        ranks = {i.type.rank for n, axis in carried if axis == 0 and (i := node.inputs[n]) is not None}
        gained = ranks == {type.rank - 1} and (type.shape[0] == 1 or not isinstance(type.shape[0], int))
        if not (result_axis == 0 or (result_axis == 1 and gained)):
            return False
    return True


def _attention(node: Node, carried: Mapping[int, int], axis: dict[Value, int]) -> str | None:
    """Attention mixes over keys by its description; a bias tensor hides how, so it is not known.

    Over keys and values that the sequence leaves alone (an encoder's) it is pointwise, unless its mask or its slopes
    compare their positions with the queries'.
    """
    q, k, v = 0, 1, 2
    assert isinstance(node.op, Attention)
    if (
        carried.keys() == {q}
        and carried[q] == 1
        and node.inputs[6] is node.inputs[8] is None
        and not node.op.compares_positions
    ):
        axis[node.output] = 1
        return None
    if any(carried.get(n) != 1 for n in (q, k, v)):
        return "attends over something other than the sequence"
    if node.inputs[8] is not None:
        return "has a bias tensor over positions that is not described by its mask"
    if not node.op.causal:
        return "is not causal: earlier positions read later ones"
    axis[node.output] = 1
    return None


def _reads_symbol(operands: Iterable[object], symbol: str) -> bool:
    types = (getattr(o, "type", None) for o in operands)
    return any(isinstance(t, TensorType) and symbol in t.symbols for t in types)
