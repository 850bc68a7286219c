"""A function in stretches of nodes, between which few values are alive: what is computed again in a backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planish.ir.module import Function, Node, Value


@dataclass(frozen=True)
class Segment:
    """Nodes that follow each other.

    Attributes:
        reads: values from before that they read.
        leaves: values of theirs that are read after them, or are results.
    """

    nodes: tuple[Node, ...]
    reads: tuple[Value, ...]
    leaves: tuple[Value, ...]


def segments(function: Function, count: int) -> list[Segment]:
    """The function in at most `count` segments of about as many nodes, cut where the fewest floating tensors are alive."""
    nodes, last = function.nodes, _last_reads(function)
    count = max(1, min(count, len(nodes)))
    length = len(nodes) / count
    alive = _alive(function, last)
    cuts = [0]
    for number in range(1, count):
        around = range(int((number - 0.5) * length) + 1, int((number + 0.5) * length) + 1)
        places = [place for place in around if cuts[-1] < place < len(nodes)]
        if places:
            cuts.append(min(places, key=lambda place: alive[place]))
    return [_segment(nodes[a:b], last, b) for a, b in zip(cuts, [*cuts[1:], len(nodes)])]


def _segment(nodes: tuple[Node, ...], last: dict[Value, int], end: int) -> Segment:
    own = dict.fromkeys(v for node in nodes for v in node.outputs)
    reads = dict.fromkeys(i for node in nodes for i in node.inputs if isinstance(i, Value) and i not in own)
    return Segment(nodes, tuple(reads), tuple(v for v in own if last.get(v, -1) >= end))


def _last_reads(function: Function) -> dict[Value, int]:
    """The number of the last node that reads each value; the number of nodes for results."""
    last = {i: number for number, node in enumerate(function.nodes) for i in _values(node.inputs)}
    return last | dict.fromkeys(_values(function.results), len(function.nodes))


def _alive(function: Function, last: dict[Value, int]) -> list[int]:
    """How many floating tensors are alive in front of each node."""
    changes = [0] * (len(function.nodes) + 2)
    for number, node in enumerate(function.nodes):
        for value in node.outputs:
            if value.type.dtype.is_floating_point and last.get(value, -1) > number:
                changes[number + 1] += 1
                changes[last[value] + 1] -= 1
    total, found = 0, []
    for change in changes[: len(function.nodes)]:
        total += change
        found.append(total)
    return found


def _values(operands: Iterable[object]) -> list[Value]:
    return [operand for operand in operands if isinstance(operand, Value)]
