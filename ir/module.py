"""Modules, functions, nodes and values.

A `Function` is one block in SSA form: nodes in topological order, no control flow. A `Module` holds named functions that
share named parameters and states. All of it is immutable: a pass builds new functions and a new module, and shares what
it did not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from planish.ir.attributes import Attribute
from planish.ir.encodings import Dense, Encoding
from planish.ir.errors import IRError
from planish.ir.op import Op
from planish.ir.params import Param
from planish.ir.types import Bindings, TensorType


@dataclass(frozen=True, eq=False)
class Value:
    """The result of a node, or an input of a function. Two values are the same only if they are the same object.

    `name` is a hint for the text form, which makes names unique by itself.
    """

    type: TensorType
    name: str = ""

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


@dataclass(frozen=True)
class ParamRef:
    """The use of a parameter, by name. Using one parameter twice is how weights are tied."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class StateRef:
    """The content of a state when the function is entered, by name."""

    name: str
    type: TensorType


Operand: TypeAlias = "Value | ParamRef | StateRef"


@dataclass(frozen=True)
class State:
    """A tensor that outlives a call, such as a layer's cached keys. It starts as zeros.

    `encoding` is how it is stored: element by element in its own dtype when None, else row by row of the last axis. It
    stays the logical tensor to every operation; what is written into an encoded state was rounded by the `cache_append`
    that wrote it.
    """

    name: str
    type: TensorType
    encoding: Encoding | None = None

    def nbytes(self, bindings: Bindings) -> int:
        """Exact bytes of its storage for given values of the symbols."""
        shape = TensorType(self.type.dtype, self.type.concrete(bindings))
        return (self.encoding or Dense(self.type.dtype)).nbytes(shape)


@dataclass(frozen=True, eq=False)
class Node:
    """One operation applied to operands (None where an optional one is absent).

    `source` says where it comes from ("modeling.py:120 in layers.0.mlp"), for messages only.
    """

    op: Op
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Value, ...]
    source: str = ""

    @property
    def output(self) -> Value:
        """The only result; raises IRError when there are several."""
        if len(self.outputs) != 1:
            raise IRError(f"{self.op.name} has {len(self.outputs)} results, not one")
        return self.outputs[0]

    @property
    def input_types(self) -> tuple[TensorType | None, ...]:
        return tuple(None if i is None else i.type for i in self.inputs)


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True, eq=False)
class Function:
    """A straight-line program: `inputs` and the module's parameters and states in, `outputs` and `updates` out.

    `updates` maps a state's name to its content after the call; states not named keep theirs.
    """

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Operand, ...]
    output_names: tuple[str, ...]
    updates: Mapping[str, Operand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "updates", _frozen(self.updates))
        if len(self.output_names) != len(self.outputs):
            raise IRError(f"function {self.name!r} has {len(self.outputs)} outputs but names {len(self.output_names)}")

    @property
    def results(self) -> tuple[Operand, ...]:
        """Everything that leaves the function: outputs, then state updates in order of name."""
        return (*self.outputs, *(self.updates[name] for name in sorted(self.updates)))

    @property
    def values(self) -> tuple[Value, ...]:
        """Every value: the inputs, then the results of the nodes in order."""
        return *self.inputs, *(value for node in self.nodes for value in node.outputs)

    def producers(self) -> dict[Value, Node]:
        return {value: node for node in self.nodes for value in node.outputs}

    def users(self) -> dict[Value, list[Node]]:
        """Nodes that read each value; a node reading it twice is listed once."""
        users: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(i for i in node.inputs if isinstance(i, Value)):
                users.setdefault(value, []).append(node)
        return users

    def __str__(self) -> str:
        from planish.ir.text.printer import print_function  # the printer imports this module

        return print_function(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def live_nodes(self) -> tuple[Node, ...]:
        """The nodes on which a result depends, in order."""
        needed = {r for r in self.results if isinstance(r, Value)}
        live: list[Node] = []
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.outputs):
                needed.update(i for i in node.inputs if isinstance(i, Value))
                live.append(node)
        return tuple(reversed(live))

    def references(self) -> Iterable[ParamRef | StateRef]:
        """Every use of a parameter or a state."""
        for node in self.nodes:
            yield from (i for i in node.inputs if isinstance(i, (ParamRef, StateRef)))
        yield from (r for r in self.results if isinstance(r, (ParamRef, StateRef)))


@dataclass(frozen=True, eq=False)
class Module:
    """Functions sharing parameters and states. `metadata` holds attributes for users of the module (end tokens, context
    length, where it came from); no pass may change what a function means because of it."""

    functions: Mapping[str, Function]
    params: Mapping[str, Param] = field(default_factory=dict)
    states: Mapping[str, State] = field(default_factory=dict)
    metadata: Mapping[str, Attribute] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("functions", "params", "states", "metadata"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))

    def __str__(self) -> str:
        from planish.ir.text.printer import print_module  # the printer imports this module

        return print_module(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def with_function(self, function: Function) -> Module:
        """The module with one function added or replaced."""
        return replace(self, functions={**self.functions, function.name: function})

    def with_params(self, params: Iterable[Param]) -> Module:
        """The module with parameters added or replaced."""
        return replace(self, params={**self.params, **{p.name: p for p in params}})

    def param_ref(self, name: str) -> ParamRef:
        """A use of one of the module's parameters; raises IRError when there is none of that name."""
        if name not in self.params:
            raise IRError(f"the module has no parameter {name!r}")
        return ParamRef(name, self.params[name].type)
