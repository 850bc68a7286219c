"""Whether two functions compute the same of the same parameters, whatever encodings these have.

Every value gets a hash of how it is computed: the operation, its attributes, the hashes of what it reads, and parameters by
name and type. The order of independent operations and unused ones do not count. A product with a quantised activation counts
as the product with the activation itself.
"""

from __future__ import annotations

import hashlib
from typing import Any

from planish.ir import Function, Node, Value
from planish.ir.module import Operand
from planish.ir.ops import Linear, QuantizeActivation, QuantizedLinear
from planish.ir.structural_hash import type_key


def meaning(function: Function) -> str:
    """A hash of everything that leaves the function; equal for two functions that compute the same in the same way."""
    made = function.producers()
    hashes: dict[Value, str] = {v: _hash("input", v.name, type_key(v.type)) for v in function.inputs}

    def of(operand: Operand | None) -> str:
        if operand is None:
            return "none"
        if isinstance(operand, Value):
            return hashes[operand]
        return _hash(type(operand).__name__, operand.name, type_key(operand.type))

    for node in function.nodes:
        op, inputs = _unquantised(node, made)
        read = [of(i) for i in inputs]
        hashes.update({v: _hash(op.key(), *read, place, type_key(v.type)) for place, v in enumerate(node.outputs)})
    updates = sorted((name, of(operand)) for name, operand in function.updates.items())
    return _hash(*zip(function.output_names, map(of, function.outputs)), *updates)


def _unquantised(node: Node, made: dict[Value, Node]) -> tuple[Any, tuple[Operand | None, ...]]:
    """The node's operation and operands, as they would be with an activation that is not quantised."""
    if not isinstance(node.op, QuantizedLinear):
        return node.op, node.inputs
    codes, scale, weight, bias = node.inputs
    source = made.get(codes) if isinstance(codes, Value) else None
    if source is None or not isinstance(source.op, QuantizeActivation) or source.outputs != (codes, scale):
        return node.op, node.inputs
    return Linear(), (source.inputs[0], weight, bias)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
