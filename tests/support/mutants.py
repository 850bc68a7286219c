"""Mutants: small semantic faults, made from the records of operations, not written by hand for any test.

A mutant is a function with one node changed: an attribute perturbed (each field of the operation's dataclass, each
argument of an ATen call), operands swapped, an operand transposed, a term dropped, a mask shifted by one, a result
rounded to a narrower dtype. The results keep their types, so that the verifier has nothing to say.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch

from planish.ir import Function, Module, Node, Op, Operand, Value
from planish.ir.errors import PlanishError
from planish.ir.op import check_operand_count
from planish.ir.ops import Aten, Slot, aten
from planish.ir.types import TensorType
from planish.passes.graph import schema_arguments

# The others have no dtype that is much narrower: bfloat16's roundoff is within what float16's own bounds allow.
NARROWER = {torch.float64: torch.float32, torch.float32: torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A function with one fault.

    Attributes:
        kind: what was done, for the table.
        detail: to which operand or attribute.
        node: the node as it was.
        function: the function with the fault.
        changed: the nodes that stand in its place.
    """

    kind: str
    detail: str
    node: Node
    function: Function
    changed: tuple[Node, ...]

    @property
    def record(self) -> str:
        """The operation whose record it was made from."""
        return f"aten.{self.node.op.overload}" if isinstance(self.node.op, Aten) else self.node.op.name

    @property
    def rounds(self) -> bool:
        """Whether the fault is one of precision, which float64 cannot show."""
        return self.kind == "dtype changed"


def mutants(function: Function, node: Node) -> Iterator[Mutant]:
    """Every mutant of one node."""
    for kind, detail, nodes in _replacements(node):
        before = function.nodes.index(node)
        changed = (*function.nodes[:before], *nodes, *function.nodes[before + 1 :])
        yield Mutant(kind, detail, node, dataclasses.replace(function, nodes=changed), nodes)


def _replacements(node: Node) -> Iterator[tuple[str, str, tuple[Node, ...]]]:
    """Nodes that could stand in a node's place, defining the same values."""
    for name, op in _perturbed(node.op):
        if _fits(op, node.inputs, node):
            kind = "epsilon lost" if name.endswith("eps -> 0.0") else "attribute perturbed"
            yield kind, name, (dataclasses.replace(node, op=op),)
    for detail, inputs in _swapped(node):
        yield "operands swapped", detail, (dataclasses.replace(node, inputs=inputs),)
    for number, operand in enumerate(node.inputs):
        if operand is None:
            continue
        label = _operand_name(node.op, number)
        yield from (("term dropped", label, nodes) for nodes in _dropped(node, number))
        for detail, movement in _movements(operand.type):
            kind = "mask shifted by one" if operand.type.dtype == torch.bool else detail
            yield kind, label, _moved(node, number, movement)
    for number, value in enumerate(node.outputs):
        narrow = NARROWER.get(value.type.dtype)
        if narrow is not None:
            yield "dtype changed", f"result {number} through {narrow}", _rounded(node, number, narrow)


def _fits(op: Op, inputs: tuple[Operand | None, ...], node: Node) -> bool:
    """Whether the operation takes these operands and gives the types that the node declares."""
    # Torch reports each refusal at length on its own.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    quiet, log.disabled = log.disabled, True
    try:
        check_operand_count(op, inputs)
        return list(op.infer(*(None if i is None else i.type for i in inputs))) == [v.type for v in node.outputs]
    except (PlanishError, AssertionError, ArithmeticError, TypeError, ValueError):
        return False
    finally:
        log.disabled = quiet


def _perturbed(op: Op) -> Iterator[tuple[str, Op]]:
    """The operation with one attribute changed, for each attribute and each way to change it."""
    if isinstance(op, Aten):
        names = [name for name, _, _ in schema_arguments(op.overload)]
        for number, value in enumerate(op.arguments):
            for other in _others(value, ""):
                changed = (*op.arguments[:number], other, *op.arguments[number + 1 :])
                yield f"{names[number]} -> {other}", dataclasses.replace(op, arguments=changed)
        for number, (name, value) in enumerate(op.keywords):
            for other in _others(value, ""):
                keywords = (*op.keywords[:number], (name, other), *op.keywords[number + 1 :])
                yield f"{name} -> {other}", dataclasses.replace(op, keywords=keywords)
        return
    for field in dataclasses.fields(op):
        for other in _others(getattr(op, field.name), str(field.type)):
            yield f"{field.name} -> {other}", dataclasses.replace(op, **{field.name: other})


def _others(value: Any, hint: str) -> Iterator[Any]:
    """Values of the same kind, near the given one; for None, values that its field's type allows instead."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float) and math.isfinite(value):
        yield from dict.fromkeys(v for v in (0.0, value * 1.001, -value) if v != value)
    elif isinstance(value, tuple) and value and not isinstance(value[0], Slot):
        yield tuple(reversed(value))
        for number, part in enumerate(value):
            yield from ((*value[:number], other, *value[number + 1 :]) for other in _others(part, ""))
    elif value is None:
        yield from (kind(2) for kind in (int, float) if kind.__name__ in hint.replace("|", " ").split())


def _operand_name(op: Op, number: int) -> str:
    return op.operand_names[number].rstrip("?") if op.operand_names is not None else f"operand {number}"


def _swapped(node: Node) -> Iterator[tuple[str, tuple[Operand | None, ...]]]:
    """Two operands of one type exchanged."""
    for a in range(len(node.inputs)):
        for b in range(a):
            first, second = node.inputs[a], node.inputs[b]
            if first is None or second is None or first == second or first.type != second.type:
                continue
            inputs = list(node.inputs)
            inputs[a], inputs[b] = second, first
            yield f"{_operand_name(node.op, b)} and {_operand_name(node.op, a)}", tuple(inputs)


def _dropped(node: Node, number: int) -> Iterator[tuple[Node, ...]]:
    """Without an operand: absent where it may be, and the other operand alone where a node combines two."""
    if node.op.operand_names is not None and node.op.operand_names[number].endswith("?"):
        inputs = (*node.inputs[:number], None, *node.inputs[number + 1 :])
        if _fits(node.op, inputs, node):
            yield (dataclasses.replace(node, inputs=inputs),)
    others = [i for n, i in enumerate(node.inputs) if n != number and i is not None]
    if len(others) == 1 and len(node.outputs) == 1 and others[0].type == node.output.type:
        yield (dataclasses.replace(node, op=aten("clone.default", Slot(0)), inputs=(others[0],)),)


def _movements(kind: TensorType) -> Iterator[tuple[str, Op]]:
    """Operations that keep a tensor's type and move its elements."""
    if kind.rank >= 2 and kind.shape[-1] == kind.shape[-2] and kind.shape[-1] != 1:
        yield "operand transposed", aten("transpose.int", Slot(0), -1, -2)
    if kind.rank >= 1 and kind.shape[-1] != 1:
        yield "operand shifted", aten("roll.default", Slot(0), (1,), (-1,))


def _moved(node: Node, number: int, movement: Op) -> tuple[Node, ...]:
    operand = node.inputs[number]
    assert operand is not None
    value = Value(operand.type)
    inputs = (*node.inputs[:number], value, *node.inputs[number + 1 :])
    return Node(movement, (operand,), (value,), node.source), dataclasses.replace(node, inputs=inputs)


def _rounded(node: Node, number: int, narrow: torch.dtype) -> tuple[Node, ...]:
    declared = node.outputs[number]
    exact, short = Value(declared.type), Value(declared.type.with_dtype(narrow))
    outputs = (*node.outputs[:number], exact, *node.outputs[number + 1 :])
    return (
        dataclasses.replace(node, outputs=outputs),
        Node(aten("_to_copy.default", Slot(0), dtype=narrow), (exact,), (short,), node.source),
        Node(aten("_to_copy.default", Slot(0), dtype=declared.type.dtype), (short,), (declared,), node.source),
    )


def with_mutant(module: Module, mutant: Mutant) -> Module:
    return module.with_function(mutant.function)
