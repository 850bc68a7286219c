"""An order of nodes in which matches with several results can be built at one place."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from planish.ir.module import Node, Value
from planish.passes.graph import Graph

if TYPE_CHECKING:
    from planish.passes.rewrite import Match, Rule

Pair = TypeVar("Pair", bound="tuple[Rule, Match]")


def scheduled(graph: Graph, chosen: list[Pair]) -> tuple[Sequence[Node], list[Pair]]:
    """Nodes in topological order with the replaced nodes of each match side by side, as near to the given order as that
    allows, and the matches that can be built in it.

    When several matches cannot be built together, those with several results wait for a later sweep but one; a match
    that can never be (its operands depend on its own results) is left out.
    """
    several = [pair for pair in chosen if _is_split(pair[1])]
    if not several:
        return graph.function.nodes, chosen
    single = [pair for pair in chosen if not _is_split(pair[1])]
    order = _order(graph, several)
    if order is not None:
        return order, chosen
    for pair in several:
        order = _order(graph, [pair])
        if order is not None:
            return order, [*single, pair]
    return graph.function.nodes, single


def _is_split(match: Match) -> bool:
    return sum(1 for node in match.nodes if not set(node.outputs).isdisjoint(match.outputs)) > 1


def _order(graph: Graph, matches: list[Pair]) -> list[Node] | None:
    """Kahn's algorithm with each match's replaced nodes contracted to one; None when that makes a cycle."""
    nodes = graph.function.nodes
    group: dict[Node, tuple[Node, ...]] = {node: (node,) for node in nodes}
    needs: dict[tuple[Node, ...], list[Value]] = {}
    for _, match in matches:
        replaced = [n for n in match.nodes if not set(n.outputs).isdisjoint(match.outputs)]
        members = tuple(sorted(replaced, key=graph.position.__getitem__))
        group.update(dict.fromkeys(members, members))
        needs[members] = match.operands()
    groups = list(dict.fromkeys(group.values()))
    waiting: dict[tuple[Node, ...], int] = {}
    readers: dict[tuple[Node, ...], list[tuple[Node, ...]]] = {}
    for members in groups:
        read = [v for n in members for v in n.inputs if isinstance(v, Value)] + needs.get(members, [])
        producers = {group[p] for p in map(graph.producer, read) if p is not None}
        if len(members) == 1:
            producers.discard(members)
        elif members in producers:
            return None
        waiting[members] = len(producers)
        for producer in producers:
            readers.setdefault(producer, []).append(members)
    ready = [(graph.position[m[0]], number, m) for number, m in enumerate(groups) if not waiting[m]]
    heapq.heapify(ready)
    numbers = {members: number for number, members in enumerate(groups)}
    order: list[Node] = []
    while ready:
        _, _, members = heapq.heappop(ready)
        order.extend(members)
        for reader in readers.get(members, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (graph.position[reader[0]], numbers[reader], reader))
    return order if len(order) == len(nodes) else None
