"""What parameters are used for, read off the data flow: tables of embeddings, weights of linear maps, output heads."""

from __future__ import annotations

from planish.ir.module import Function, Module, Node, ParamRef, Value
from planish.ir.ops import Embedding, Linear, QuantizedLinear

WEIGHT_OPERAND: dict[type, int] = {Linear: 1, QuantizedLinear: 2, Embedding: 1}


def weight_of(node: Node) -> ParamRef | None:
    """The parameter that a linear map or an embedding multiplies or picks from; None for other nodes and values."""
    number = WEIGHT_OPERAND.get(type(node.op))
    operand = None if number is None else node.inputs[number]
    return operand if isinstance(operand, ParamRef) else None


def heads(function: Function) -> set[Node]:
    """The linear maps whose result leaves the function, directly or through nodes that no other linear map follows.

    An output head is followed by elementwise work at most (a soft cap, a cast), so no linear map reads what it feeds.
    """
    feeds_linear: set[Value] = set()
    found: set[Node] = set()
    for node in reversed(function.nodes):
        linear = isinstance(node.op, (Linear, QuantizedLinear))
        reaches = any(v in feeds_linear for v in node.outputs)
        if linear and not reaches:
            found.add(node)
        if linear or reaches:
            feeds_linear.update(i for i in node.inputs if isinstance(i, Value))
    return found


def roles(module: Module) -> dict[str, set[str]]:
    """For each parameter used as a weight: a set out of "embedding", "linear" and "head"."""
    found: dict[str, set[str]] = {}
    for function in module.functions.values():
        ends = heads(function)
        for node in function.nodes:
            weight = weight_of(node)
            if weight is not None:
                role = "embedding" if isinstance(node.op, Embedding) else "head" if node in ends else "linear"
                found.setdefault(weight.name, set()).add(role)
    return found
