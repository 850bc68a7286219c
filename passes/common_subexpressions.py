"""Common subexpressions: equal operations on equal operands are computed once."""

from __future__ import annotations

from typing import Any, ClassVar

from planish.ir.builder import Rewriter
from planish.ir.module import Function, Module, Node, ParamRef, StateRef
from planish.passes.graph import is_deterministic
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult


def _operand_key(operand: object) -> tuple[Any, ...]:
    if isinstance(operand, ParamRef):
        return ("param", operand.name)
    if isinstance(operand, StateRef):
        return ("state", operand.name)
    return ("value", id(operand))


def merge(function: Function) -> tuple[Function, int, Correspondence]:
    """The function with every repeated operation replaced by its first occurrence, and how many there were."""
    rewriter = Rewriter(function)
    seen: dict[tuple[Any, ...], Node] = {}
    merged = 0
    for node in function.nodes:
        # The operands' stand-ins, so that repetitions of repetitions are found in the same sweep. Every value stays
        # alive in the function under construction, so an id names one value.
        key = (node.op.key(), *(_operand_key(o) for o in rewriter.operands(node)))
        if not is_deterministic(node.op):
            rewriter.keep(node)
        elif key in seen:
            merged += 1
            for old, new in zip(node.outputs, seen[key].outputs):
                rewriter.replace(old, new)
        else:
            seen[key] = rewriter.keep(node)
    return (rewriter.finish_like(), merged, rewriter.correspondence) if merged else (function, 0, {})


class CommonSubexpressions(Pass):
    """Computes each operation once for the same operands and attributes.

    before: a = f(x); b = f(x); c = g(a, b)      after: a = f(x); c = g(a, a)

    Attributes are the same only when their types and bits are: `x + 1` and `x + 1.0` stay apart, as do 0.0 and -0.0.
    """

    name: ClassVar[str] = "common-subexpressions"

    def apply(self, module: Module, context: Context) -> PassResult:
        total, result = 0, module
        correspondence: dict[str, Correspondence] = {}
        for name, function in module.functions.items():
            changed, merged, correspondence[name] = merge(function)
            total += merged
            if merged:
                result = result.with_function(changed)
        return PassResult(result, total, correspondence)
