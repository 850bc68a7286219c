"""A function seen as a graph: who makes a value, who reads it, and the arguments of ATen calls by their schema names."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, TypeAlias

import torch

from planish.ir.attributes import Attribute
from planish.ir.module import Function, Module, Node, Operand, ParamRef, StateRef, Value
from planish.ir.op import Op
from planish.ir.ops import Aten
from planish.ir.ops.aten import resolve_overload

Argument: TypeAlias = "Operand | Attribute"

# Constants above this many elements are weights; no rule decides anything by reading them.
SMALL_CONSTANT = 4096


@cache
def schema_arguments(overload: str) -> tuple[tuple[str, Any, bool], ...]:
    """For each argument of an ATen operator: its name, its default (None without one), whether it has a default."""
    schema = resolve_overload(overload)._schema
    return tuple((a.name, a.default_value, a.has_default_value()) for a in schema.arguments)


def is_deterministic(op: Op) -> bool:
    """Whether an operation gives the same results each time; random ATen operators do not."""
    return not isinstance(op, Aten) or torch.Tag.nondeterministic_seeded not in resolve_overload(op.overload).tags


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, (list, tuple)) else value


def named_arguments(op: Aten, operands: tuple[Operand | None, ...]) -> dict[str, Argument]:
    """Every argument of an ATen call by name, defaults filled in, lists as tuples."""
    positional, keywords = op.call_arguments(operands)
    names = schema_arguments(op.overload)
    given = {name: _tupled(value) for (name, _, _), value in zip(names, positional)}
    given.update((key, _tupled(value)) for key, value in keywords.items())
    for name, default, has_default in names:
        if name not in given and has_default:
            given[name] = _tupled(default)
    return given


class Graph:
    """Lookups in one function of a module. Read only; built once per sweep."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module = module
        self.function = function
        self.position = {node: index for index, node in enumerate(function.nodes)}
        self._producers = function.producers()
        self._users = function.users()
        self._results = {r for r in function.results if isinstance(r, Value)}

    def producer(self, operand: object) -> Node | None:
        """The node that computes an operand; None for inputs, parameters, states and absent operands."""
        return self._producers.get(operand) if isinstance(operand, Value) else None

    def users(self, value: Value) -> list[Node]:
        return self._users.get(value, [])

    def is_result(self, value: Value) -> bool:
        """Whether the function returns the value or stores it in a state."""
        return value in self._results

    def read_outside(self, value: Value, nodes: Iterable[Node]) -> Node | bool | None:
        """Who but `nodes` reads a value: a node, True for the function's own results, None for nobody."""
        if value in self._results:
            return True
        inside = set(nodes)
        return next((user for user in self.users(value) if user not in inside), None)

    def is_call(self, operand: object, *overloads: str) -> bool:
        """Whether an operand is computed by one of these ATen calls."""
        node = self.producer(operand)
        return node is not None and isinstance(node.op, Aten) and node.op.overload in overloads

    @staticmethod
    def arguments(node: Node) -> dict[str, Any]:
        """The arguments of an ATen call by schema name."""
        assert isinstance(node.op, Aten)
        return named_arguments(node.op, node.inputs)

    def constant(self, operand: object) -> torch.Tensor | None:
        """The content of a small parameter, else None."""
        if not isinstance(operand, ParamRef) or operand.name not in self.module.params:
            return None
        size = 1
        for dim in operand.type.shape:
            size *= dim if isinstance(dim, int) else SMALL_CONSTANT + 1
        return self.module.params[operand.name].value() if size <= SMALL_CONSTANT else None


def same_operand(a: object, b: object) -> bool:
    """Whether two operands are the same: the same value object, parameter or state."""
    if isinstance(a, (ParamRef, StateRef)):
        return a == b
    return a is b
