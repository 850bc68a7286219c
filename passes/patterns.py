"""A small pattern language: the left side of a rewrite, written as an ordinary Python function over its variables.

    def left(x, weight, *, eps):
        wide = cast(x)
        return mul(wide, call("rsqrt.default", call("add.Tensor", mean, eps)))

Positional parameters of the function stand for operands (values, parameters, states), keyword-only ones for attributes.
A term used twice must match the same node; a variable used twice the same operand or equal attributes. Calls of
commutative operators match both ways. A pattern can also be turned into nodes (`instantiate`), so that tests draw
programs from the rule itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from planish.ir.attributes import attribute_key
from planish.ir.builder import Builder
from planish.ir.errors import IRError
from planish.ir.module import Node, Operand, ParamRef, StateRef, Value
from planish.ir.op import Chooser, Op
from planish.ir.ops import Aten, Slot
from planish.passes.graph import Argument, Graph, named_arguments, same_operand, schema_arguments

COMMUTATIVE = frozenset(
    "add.Tensor mul.Tensor maximum.default minimum.default logical_and.default logical_or.default "
    "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor eq.Tensor ne.Tensor".split()
)


@dataclass(frozen=True, eq=False)
class Variable:
    """Matches any operand, or any attribute if `attribute`, for which `where` holds."""

    name: str
    attribute: bool = False
    where: Callable[[Any], bool] | None = None

    def accepts(self, argument: Argument) -> bool:
        is_operand = isinstance(argument, (Value, ParamRef, StateRef))
        return is_operand != self.attribute and (self.where is None or self.where(argument))


@dataclass(frozen=True, eq=False)
class Call:
    """Matches a node: an ATen call by overload (`arguments` by schema name, defaults filled in), or a model operation
    by class (`operands` in order, None for an absent one; `arguments` for the attributes that matter)."""

    overload: str | None
    op: type[Op] | None
    operands: tuple[Any, ...]
    arguments: Mapping[str, Any]
    name: str = ""

    @property
    def root(self) -> str:
        """What `Rule.roots` calls the nodes that this pattern can match."""
        return self.op.name if self.op is not None else str(self.overload)


@dataclass(frozen=True, eq=False)
class OneOf:
    """Matches what any of the options matches, tried in order."""

    options: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Result:
    """Result number `index` of a call with several results."""

    call: Call
    index: int


Term: TypeAlias = "Variable | Call | OneOf | Result | Any"


def call(overload: str, *arguments: Term, capture: str = "", **keywords: Term) -> Call:
    """The pattern of an ATen call. Arguments not given must have their defaults; `capture` names the matched node."""
    names = schema_arguments(overload)
    if len(arguments) > len(names) or any(k not in {n for n, _, _ in names} for k in keywords):
        raise IRError(f"aten.{overload} takes the arguments {', '.join(n for n, _, _ in names)}")
    given = {name: default for name, default, has_default in names if has_default}
    given.update({name: term for (name, _, _), term in zip(names, arguments)})
    return Call(overload, None, (), {k: _frozen(v) for k, v in {**given, **keywords}.items()}, capture)


def op(kind: type[Op], *operands: Term, capture: str = "", **attributes: Term) -> Call:
    """The pattern of a model operation. Attributes not given may have any value."""
    return Call(None, kind, operands, {k: _frozen(v) for k, v in attributes.items()}, capture)


def where(variable: Variable, predicate: Callable[[Any], bool]) -> Variable:
    """The variable, restricted."""
    return Variable(variable.name, variable.attribute, predicate)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def trace(left: Callable[..., Any]) -> tuple[Term, ...]:
    """The terms that a pattern function returns, as a tuple, for fresh variables named like its parameters."""
    positional, keyword = [], {}
    for name, parameter in inspect.signature(left).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            keyword[name] = Variable(name, attribute=True)
        else:
            positional.append(Variable(name))
    terms = left(*positional, **keyword)
    return terms if isinstance(terms, tuple) else (terms,)


@dataclass(frozen=True)
class Bindings:
    """A partial match: arguments by variable name, nodes by the call pattern that matched them."""

    captures: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[int, Node] = field(default_factory=dict)

    def bind(self, variable: Variable, argument: Argument) -> Bindings | None:
        if not variable.accepts(argument):
            return None
        if variable.name not in self.captures:
            return Bindings({**self.captures, variable.name: argument}, self.nodes)
        bound = self.captures[variable.name]
        same = _equal(bound, argument) if variable.attribute else same_operand(bound, argument)
        return self if same else None


def _equal(a: Any, b: Any) -> bool:
    return attribute_key(_frozen(a)) == attribute_key(_frozen(b))


def match_argument(term: Term, argument: Argument, graph: Graph, bindings: Bindings) -> Iterator[Bindings]:
    """All ways in which a term matches an argument, given what is bound."""
    if isinstance(term, Variable):
        bound = bindings.bind(term, argument)
        if bound is not None:
            yield bound
    elif isinstance(term, OneOf):
        for option in term.options:
            yield from match_argument(option, argument, graph, bindings)
    elif isinstance(term, (Call, Result)):
        node = graph.producer(argument)
        pattern, index = (term.call, term.index) if isinstance(term, Result) else (term, 0)
        if node is not None and index < len(node.outputs) and argument is node.outputs[index]:
            yield from match_node(pattern, node, graph, bindings)
    elif not isinstance(argument, (Value, ParamRef, StateRef)):
        if isinstance(term, tuple) and isinstance(argument, tuple) and len(term) == len(argument):
            yield from _match_all(list(zip(term, argument)), graph, bindings)
        elif not isinstance(term, tuple) and not isinstance(argument, tuple) and _equal(term, argument):
            yield bindings


def match_node(pattern: Call, node: Node, graph: Graph, bindings: Bindings) -> Iterator[Bindings]:
    """All ways in which a call pattern matches a node."""
    if id(pattern) in bindings.nodes:
        if bindings.nodes[id(pattern)] is node:
            yield bindings
        return
    named = {pattern.name: node} if pattern.name else {}
    bound = Bindings({**bindings.captures, **named}, {**bindings.nodes, id(pattern): node})
    if pattern.op is not None:
        if type(node.op) is not pattern.op or len(pattern.operands) != len(node.inputs):
            return
        attributes = node.op.attributes()
        pairs: list[tuple[Term, Any]] = list(zip(pattern.operands, node.inputs))
        pairs += [(term, attributes[key]) for key, term in pattern.arguments.items()]
        yield from _match_all(pairs, graph, bound)
        return
    if not isinstance(node.op, Aten) or node.op.overload != pattern.overload:
        return
    actual = named_arguments(node.op, node.inputs)
    if actual.keys() != pattern.arguments.keys():
        return
    yield from _match_all([(term, actual[key]) for key, term in pattern.arguments.items()], graph, bound)
    if pattern.overload in COMMUTATIVE and actual.get("alpha", 1) == 1:
        swapped = {**actual, "self": actual["other"], "other": actual["self"]}
        yield from _match_all([(term, swapped[key]) for key, term in pattern.arguments.items()], graph, bound)


def _match_all(pairs: list[tuple[Term, Any]], graph: Graph, bindings: Bindings) -> Iterator[Bindings]:
    if not pairs:
        yield bindings
        return
    (term, argument), *rest = pairs
    for bound in match_argument(term, argument, graph, bindings):
        yield from _match_all(rest, graph, bound)


class Instantiation:
    """Turns terms into nodes of a function under construction, once for each call pattern.

    `values` gives an operand or an attribute for each variable. Options are chosen, and operands of commutative
    operators swapped, at random.
    """

    def __init__(self, builder: Builder, values: Mapping[str, Any], choose: Chooser) -> None:
        self.builder = builder
        self.values = values
        self.choose = choose
        self._made: dict[int, Node] = {}
        self._chosen: dict[int, Any] = {}

    def argument(self, term: Term) -> Any:
        if isinstance(term, Variable):
            return self.values[term.name]
        if isinstance(term, OneOf):
            if id(term) not in self._chosen:
                self._chosen[id(term)] = self.choose.choice(list(term.options))
            return self.argument(self._chosen[id(term)])
        if isinstance(term, Call):
            return self.node(term).output
        if isinstance(term, Result):
            return self.node(term.call).outputs[term.index]
        return tuple(self.argument(t) for t in term) if isinstance(term, tuple) else term

    def node(self, pattern: Call) -> Node:
        if id(pattern) not in self._made:
            if pattern.op is not None:
                attributes = {key: self.argument(term) for key, term in pattern.arguments.items()}
                operands = [None if t is None else self.argument(t) for t in pattern.operands]
                self._made[id(pattern)] = self.builder.node(pattern.op(**attributes), *operands)
            else:
                self._made[id(pattern)] = self._aten(pattern)
        return self._made[id(pattern)]

    def _aten(self, pattern: Call) -> Node:
        assert pattern.overload is not None
        arguments = {key: self.argument(term) for key, term in pattern.arguments.items()}
        tensors = isinstance(arguments.get("other"), (Value, ParamRef, StateRef))
        if pattern.overload in COMMUTATIVE and tensors and self.choose.boolean():
            arguments["self"], arguments["other"] = arguments["other"], arguments["self"]
        return self.builder.node(*aten_call(pattern.overload, arguments))


def aten_call(overload: str, arguments: Mapping[str, Argument]) -> tuple[Any, ...]:
    """The operation and its operands for an ATen call given by argument name; defaults are left out where possible."""
    operands: list[Operand] = []

    def slotted(value: Any) -> Any:
        if isinstance(value, (Value, ParamRef, StateRef)):
            for index, known in enumerate(operands):
                if same_operand(known, value):
                    return Slot(index)
            operands.append(value)
            return Slot(len(operands) - 1)
        return tuple(slotted(v) for v in value) if isinstance(value, (list, tuple)) else value

    # Positional up to the last required one, as exported programs write them; keywords in order of name.
    schema = schema_arguments(overload)
    required = [n for n, (_, _, has_default) in enumerate(schema) if not has_default]
    leading = 1 + max(required, default=-1)
    positional = tuple(slotted(arguments[name]) for name, _, _ in schema[:leading])
    keywords = {}
    for name, default, _ in schema[leading:]:
        value = arguments.get(name, default)
        is_operand = isinstance(value, (Value, ParamRef, StateRef))
        if is_operand or not _equal(_frozen(value), _frozen(default)):
            keywords[name] = slotted(value)
    return (Aten(overload, positional, tuple(sorted(keywords.items()))), *operands)
