"""Where the indices of one axis of a value go, and come from, by operations that are linear along them."""

from __future__ import annotations

from dataclasses import dataclass, field

from planish.ir.module import Node, ParamRef, Value
from planish.ir.ops import Aten, LayerNorm
from planish.ir.spaces.laws import Family, Indexing, Law, Place
from planish.ir.spaces.terms import Atom, Term, normal
from planish.passes.graph import Graph
from planish.passes.param_changes import Read

# What gives rows of its operand, or their mean.
ROWS = frozenset((
    "select.int slice.Tensor unbind.int split.Tensor split_with_sizes.default chunk.default view.default reshape.default "
    "_unsafe_view.default flatten.using_ints unflatten.int unsqueeze.default squeeze.default squeeze.dim squeeze.dims "
    "transpose.int t.default permute.default expand.default contiguous.default clone.default alias.default to.dtype "
    "_to_copy.default mean.dim"
).split())  # fmt: skip


class Stays(Exception):
    """Why something cannot be moved along an axis: a sentence that begins with what is in the way."""


@dataclass
class Ways:
    """What was met along an axis.

    Attributes:
        values: those that have its indices, with the number of the axis.
        rows: those of them that hold vectors of the first one, or means of them.
        contracted: reads of parameters that sum over them, with the axis of the parameter.
        added: reads of parameters that have them themselves, alike.
        norms: layer norms over them.
    """

    values: dict[Value, int] = field(default_factory=dict)
    rows: set[Value] = field(default_factory=set)
    contracted: dict[Read, int] = field(default_factory=dict)
    added: dict[Read, int] = field(default_factory=dict)
    norms: list[Node] = field(default_factory=list)


def readers_of(graph: Graph, value: Value, axis: int) -> Ways:
    """Where the indices go until parameters contract them; raises Stays when one way ends otherwise."""
    ways = Ways({value: axis}, {value})
    waiting = [value]
    while waiting:
        here = waiting.pop()
        for law, node, indexing in _onward(graph, here, ways.values[here]):
            (own,) = {s for p, s in law.places.items() if p.kind == "operand" and node.inputs[p.number] is here}
            for place, side in law.places.items():
                at = _axis(law.term, indexing, place)
                if place.kind == "result":
                    _enter(ways, waiting, node.outputs[place.number], at)
                    if here in ways.rows and operation(node) in ROWS:
                        ways.rows.add(node.outputs[place.number])
                elif side != own:
                    read, of_param = _contracted(graph, node, place.number, at)
                    ways.contracted[read] = of_param
                elif node.inputs[place.number] is not here:
                    raise Stays(f"{operation(node)} adds something else to it")
    return ways


def sum_around(graph: Graph, value: Value, axis: int) -> Ways:
    """All that is added up in a value and all that it is added up in, as far as layer norms; raises Stays when anything
    but sums, and norms over the axis, makes or reads one of these values."""
    ways = Ways({value: axis})
    waiting = [value]
    while waiting:
        here = waiting.pop()
        at = ways.values[here]
        for user in graph.users(here):
            if isinstance(user.op, LayerNorm) and user.inputs[0] is here and at == here.type.rank - 1:
                ways.norms.append(user)
            else:
                _gather(ways, waiting, graph, user, here, at)
        if graph.is_result(here):
            raise Stays(f"{graph.function.name} returns it")
        producer = graph.producer(here)
        if producer is None:
            raise Stays(f"it is an input of {graph.function.name}")
        _gather(ways, waiting, graph, producer, here, at)
    return ways


def _gather(ways: Ways, waiting: list[Value], graph: Graph, node: Node, here: Value, at: int) -> None:
    for law, indexing in _laws(node, here, at):
        for place, side in law.places.items():
            axis = _axis(law.term, indexing, place)
            tensor = node.outputs[place.number] if place.kind == "result" else node.inputs[place.number]
            if side < 0:
                raise Stays(f"{operation(node)} reads it")
            if isinstance(tensor, Value):
                _enter(ways, waiting, tensor, axis)
            else:
                ways.added[_read(graph, node, place.number)] = axis


def _onward(graph: Graph, here: Value, axis: int) -> list[tuple[Law, Node, Indexing]]:
    if graph.is_result(here):
        raise Stays(f"{graph.function.name} returns it")
    return [(law, node, indexing) for node in graph.users(here) for law, indexing in _laws(node, here, axis)]


def _laws(node: Node, here: Value, axis: int) -> list[tuple[Law, Indexing]]:
    """The law of an axis of a value that a node reads or makes, once for each time that it does."""
    indexing = node.op.indexing(*node.input_types)
    if indexing is None:
        raise Stays(f"{operation(node)} declares nothing about its indices")
    met = [terms for o, terms in zip(node.inputs, indexing.operands, strict=True) if o is here]
    met += [terms for v, terms in zip(node.outputs, indexing.results, strict=True) if v is here]
    found = []
    for terms in met:
        assert terms is not None
        term = normal(terms[axis])
        law = next((each for each in indexing.laws if normal(each.term) is term), None)
        if law is None or not isinstance(term, Atom) or law.family < Family.GENERAL:
            raise Stays(f"{operation(node)} is not linear along it")
        found.append((law, indexing))
    return found


def _axis(term: Term, indexing: Indexing, place: Place) -> int:
    """The one axis that has the indices in a tensor of a node."""
    terms = (indexing.operands if place.kind == "operand" else indexing.results)[place.number]
    where = [n for n, each in enumerate(terms or ()) if normal(each) is normal(term)]
    if len(where) != 1:
        raise Stays("the indices are a part of an axis, or lie on two")
    return where[0]


def _read(graph: Graph, node: Node, number: int) -> Read:
    if not isinstance(node.inputs[number], ParamRef):
        raise Stays(f"{operation(node)} multiplies it by what is computed at run time")
    return Read(graph.function.name, node, number)


def _contracted(graph: Graph, node: Node, number: int, axis: int) -> tuple[Read, int]:
    """The read of a parameter with which a node multiplies, and the axis of it. What is picked out of a parameter, or moved,
    on its way counts as the parameter, where nothing else reads it."""
    operand = node.inputs[number]
    while isinstance(operand, Value):
        producer = graph.producer(operand)
        if producer is None or graph.read_outside(operand, [node]):
            break
        ((law, indexing),) = _laws(producer, operand, axis)
        places = [place for place in law.places if place.kind == "operand"]
        if len(places) != 1:
            break
        node, number, axis = producer, places[0].number, _axis(law.term, indexing, places[0])
        operand = node.inputs[number]
    return _read(graph, node, number), axis


def operation(node: Node) -> str:
    """The name of a node's operation as reports show it."""
    return node.op.overload if isinstance(node.op, Aten) else node.op.name


def _enter(ways: Ways, waiting: list[Value], value: Value, axis: int) -> None:
    if value not in ways.values:
        ways.values[value] = axis
        waiting.append(value)
    elif ways.values[value] != axis:
        raise Stays("the indices come back on another axis")
