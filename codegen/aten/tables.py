"""All ATen operators that are computed by fused elementwise kernels or by folds, joined from the tables by kind."""

from __future__ import annotations

from planish.codegen.aten.activations import ACTIVATIONS
from planish.codegen.aten.arithmetic import ARITHMETIC
from planish.codegen.aten.creation import CREATION
from planish.codegen.aten.logic import LOGIC
from planish.codegen.aten.model import MODEL
from planish.codegen.aten.movement import COPIES, MOVEMENT, UNIT_AXES, VIEWS
from planish.codegen.aten.reductions import REDUCTIONS
from planish.codegen.aten.windows import WINDOWS
from planish.codegen.pointwise.expression import Pointwise
from planish.codegen.pointwise.reduction import FoldRule
from planish.ir import Node
from planish.ir.ops import Aten, Positions

POINTWISE: dict[str, Pointwise] = {**ARITHMETIC, **ACTIVATIONS, **LOGIC, **MOVEMENT, **CREATION, **WINDOWS}


def overload(node: Node) -> str:
    """The ATen overload of a node, or "" for another operation."""
    return node.op.overload if isinstance(node.op, Aten) else ""


def pointwise_rule(node: Node) -> Pointwise | None:
    """How a node is computed element by element, or None."""
    if isinstance(node.op, Aten):
        return POINTWISE.get(node.op.overload)
    if isinstance(node.op, Positions) and node.inputs[1] is not None:
        return None
    return MODEL.get(node.op.name)


def fold_rule(node: Node) -> FoldRule | None:
    """How a node folds axes, or None."""
    return REDUCTIONS.get(overload(node))


def is_view(node: Node) -> bool:
    """Whether a node's result has its operand's elements in the same order."""
    return overload(node) in VIEWS


def is_unit_view(node: Node) -> bool:
    """Whether a view only adds or drops axes of size 1."""
    operand = node.inputs[0] if node.inputs else None
    if not is_view(node) or operand is None:
        return False
    return [d for d in operand.type.shape if d != 1] == [d for d in node.output.type.shape if d != 1]


def is_copy(node: Node) -> bool:
    """Whether a node's first result is its first operand, unchanged: a copy, or a cast to the dtype it has."""
    name = overload(node)
    if name in COPIES:
        return True
    same = name in ("to.dtype", "to.dtype_layout", "_to_copy.default", "type_as.default", "expand.default", "to.other")
    operand = node.inputs[0] if node.inputs else None
    return same and operand is not None and operand.type == node.output.type


__all__ = ["POINTWISE", "UNIT_AXES", "fold_rule", "is_copy", "is_unit_view", "is_view", "overload", "pointwise_rule"]
