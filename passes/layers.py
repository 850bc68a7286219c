"""The layers of a function, found by its data flow: parts that come one after another, are built alike, and through which
alone everything goes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from planish.ir.module import Function, Node, Value


@dataclass(frozen=True, eq=False)
class Layer:
    """A part of a function that makes one value of another of the same type, and is read nowhere else.

    Attributes:
        start, end: the value that goes in and the one that comes out.
    """

    start: Value
    end: Value


def find_layers(function: Function) -> tuple[Layer, ...]:
    """The layers, in order; none where nothing repeats.

    A layer begins and ends at values that lie on every way from a source of floating numbers (an embedding, an input) to the
    outputs. Neighbours with the same operations, whatever their attributes, repeat; the longest stretch of parts that repeat
    makes the layers, each one period long.
    """
    graph, position = nx.DiGraph(), {}
    for number, node in enumerate(function.nodes):
        position[node] = number
        for operand in node.inputs:
            if isinstance(operand, Value):
                graph.add_edges_from((operand, result) for result in node.outputs)
    outputs = [operand for operand in function.outputs if isinstance(operand, Value)]
    ends = object()
    graph.add_edges_from((output, ends) for output in outputs)
    producers = function.producers()
    longest: tuple[Layer, ...] = ()
    for source in _sources(function):
        if source in graph and nx.has_path(graph, source, ends):
            chain = _common_way(graph, source, ends)
            found = _repeating(chain, graph, producers, position)
            longest = max(longest, found, key=lambda layers: sum(_span(layer, position, producers) for layer in layers))
    return longest


def _sources(function: Function) -> list[Value]:
    """Floating values that are made of no floating value: inputs, and what a table gives."""
    found = [value for value in function.inputs if value.type.dtype.is_floating_point]
    for node in function.nodes:
        read = [o for o in node.inputs if isinstance(o, Value) and o.type.dtype.is_floating_point]
        found += [] if read else [v for v in node.outputs if v.type.dtype.is_floating_point]
    return found


def _common_way(graph: nx.DiGraph, source: Value, ends: object) -> list[Value]:
    """The values on every way from a source to the outputs, in order."""
    within = graph.subgraph({source, *nx.descendants(graph, source)})
    over = nx.immediate_dominators(within, source)
    chain, here = [], over[ends]
    while here != source:
        chain.append(here)
        here = over[here]
    return [source, *reversed(chain)]


def _repeating(
    chain: list[Value], graph: nx.DiGraph, producers: dict[Value, Node], position: dict[Node, int]
) -> tuple[Layer, ...]:
    """The longest stretch of a chain that repeats, as layers."""
    parts = list(pairwise(chain))
    built = [_built(graph, start, end, producers, position) if start.type == end.type else None for start, end in parts]
    best: tuple[int, int, int] = (0, 0, 1)
    for period in range(1, len(parts) // 2 + 1):
        first = 0
        while first + 2 * period <= len(parts):
            last = first + period
            while last < len(parts) and built[last] is not None and built[last] == built[last - period]:
                last += 1
            whole = (last - first) // period * period
            if whole >= 2 * period and None not in built[first : first + whole] and whole > best[1]:
                best = (first, whole, period)
            first += 1
    first, whole, period = best
    return tuple(Layer(chain[at], chain[at + period]) for at in range(first, first + whole, period))


def _built(
    graph: nx.DiGraph, start: Value, end: Value, producers: dict[Value, Node], position: dict[Node, int]
) -> tuple[str, ...]:
    """The operations between two values, in order."""
    between = (nx.descendants(graph, start) & nx.ancestors(graph, end)) | {end}
    nodes = sorted({producers[value] for value in between}, key=position.__getitem__)
    return tuple(getattr(node.op, "overload", node.op.name) for node in nodes)


def _span(layer: Layer, position: dict[Node, int], producers: dict[Value, Node]) -> int:
    return position[producers[layer.end]] - (position[producers[layer.start]] if layer.start in producers else -1)
