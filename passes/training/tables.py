"""Which parameters of a function are constant tables: a trace does not tell buffers from parameters, but their use does."""

from __future__ import annotations

from collections.abc import Iterator

from planish.ir.module import Function, Node, ParamRef
from planish.ir.ops import Aten, Attention, Rope

TABLE_OPERANDS: dict[type, tuple[int, ...]] = {Rope: (2,), Attention: (6, 8)}
"""Inverse frequencies; slopes and the bias of attention."""
TABLE_ARGUMENTS: dict[str, tuple[int, ...]] = {"batch_norm.default": (3, 4)}
"""Running means and variances."""


def tables(function: Function) -> set[str]:
    """Names of the parameters that some operation reads as a table."""
    return {name for node in function.nodes for name in _read_by(node)}


def _read_by(node: Node) -> Iterator[str]:
    numbers: tuple[object, ...] = TABLE_OPERANDS.get(type(node.op), ())
    if isinstance(node.op, Aten):
        arguments, _ = node.op.call_arguments(tuple(range(len(node.inputs))))
        numbers = tuple(arguments[n] for n in TABLE_ARGUMENTS.get(node.op.overload, ()))
    for number in numbers:
        operand = node.inputs[number] if isinstance(number, int) else None
        if isinstance(operand, ParamRef):
            yield operand.name
