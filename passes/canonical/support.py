"""What the families of canonical rules share: rules made from an overload and a condition, and draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand, ParamRef, StateRef, Value
from planish.ir.op import Chooser
from planish.ir.types import TensorType
from planish.passes.graph import Graph
from planish.passes.patterns import aten_call
from planish.passes.rewrite import Found, Match, Replacement, Rule

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Arguments = Mapping[str, Any]


def is_operand(argument: object) -> bool:
    return isinstance(argument, (Value, ParamRef, StateRef))


def identity_rule(
    name: str,
    overloads: tuple[str, ...],
    refuse: Callable[[Arguments, Node], str | bool],
    draw: Callable[[Chooser], tuple[str, TensorType, Arguments]],
    operand: str = "self",
) -> Rule:
    """`f(x, ...)` --> `x`, for calls of the overloads that give back their operand unless `refuse` says otherwise:
    True when the call is something else, a sentence when it nearly is the identity.

    `draw` gives an overload, the operand's type and the other arguments of a call that is the identity.
    """

    def find(node: Node, graph: Graph) -> Found:
        arguments = graph.arguments(node)
        x = arguments.get(operand)
        if not is_operand(x) or len(node.outputs) != 1 or x.type != node.output.type:  # type: ignore[union-attr]
            return None
        refusal = refuse(arguments, node)
        if refusal:
            return refusal if isinstance(refusal, str) else None
        return Match(node.outputs, (node,), {"x": x})

    def sample(choose: Chooser) -> Module:
        overload, kind, arguments = draw(choose)
        return call_module(overload, kind, arguments, operand)

    return Rule(name, frozenset(overloads), find, lambda to, match: keep_operand(match), sample)


def keep_operand(match: Match) -> Operand:
    operand: Operand = match["x"]
    return operand


def call_module(overload: str, kind: TensorType, arguments: Arguments, operand: str = "self") -> Module:
    """A module that calls one operator on its input, between two others, so that the call is no result itself."""
    builder = Builder("forward")
    x = builder.input("x", kind)
    first = builder.emit(*aten_call("neg.default" if kind.dtype != torch.bool else "logical_not.default", {"self": x}))
    y = builder.emit(*aten_call(overload, {operand: first, **arguments}))
    return Module({"forward": builder.finish([y], ["y"])})


def chain_module(kind: TensorType, calls: Sequence[tuple[str, Arguments]]) -> Module:
    """A module that applies calls to its input, one after the other."""
    builder = Builder("forward")
    value = builder.input("x", kind)
    for overload, arguments in calls:
        value = builder.emit(*aten_call(overload, {"self": value, **arguments}))
    return Module({"forward": builder.finish([value], ["y"])})


def chained_rule(
    name: str,
    overloads: tuple[str, ...],
    find: Callable[[Node, Node, Graph], Found],
    build: Callable[[Replacement, Match], Operand],
    sample: Callable[[Chooser], Module],
    operand: str = "self",
) -> Rule:
    """A rule on a call of the overloads whose operand is such a call too: `find(outer, inner, graph)`."""

    def find_pair(node: Node, graph: Graph) -> Found:
        inner = graph.producer(graph.arguments(node).get(operand))
        if inner is None or len(inner.outputs) != 1 or not graph.is_call(inner.output, *overloads):
            return None
        return find(node, inner, graph)

    # The inner call may have other readers: it stays for them, and the outer one no longer waits for it.
    return Rule(name, frozenset(overloads), find_pair, build, sample, keeps_shared=True)


def draw_type(choose: Chooser, rank: int | None = None, dtype: torch.dtype | None = None) -> TensorType:
    """A small type with asymmetric sizes."""
    rank = choose.integer(1, 4) if rank is None else rank
    shape = tuple(choose.integer(1, 5) for _ in range(rank))
    return TensorType(dtype or choose.choice(list(FLOATS)), shape)
