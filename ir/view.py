"""Views of a function as a networkx graph, and as a drawing for Graphviz. The function itself stays the storage."""

from __future__ import annotations

from typing import Any

import networkx as nx

from planish.ir.dims import quote
from planish.ir.module import Function, Operand, Value
from planish.ir.text.printer import FunctionPrinter


def to_networkx(function: Function) -> nx.DiGraph:
    """Who feeds whom.

    Vertices, in order: each input `Value`, each `Node`, each `ParamRef` and `StateRef` that is read, and
    `("output", name)` or `("update", state name)` for each result; attribute `kind` tells which it is. An edge runs from
    what makes an operand to what reads it; its attribute `reads` lists (operand number, operand) for every operand that
    runs along it, so that a node reading one value twice has one edge with two entries.
    """
    graph = nx.DiGraph()
    makers: dict[Value, Any] = {value: value for value in function.inputs}

    def read(reader: Any, number: int, operand: Operand) -> None:
        maker = makers.get(operand, operand) if isinstance(operand, Value) else operand
        if maker not in graph:
            graph.add_node(maker, kind=type(maker).__name__)
        if not graph.has_edge(maker, reader):
            graph.add_edge(maker, reader, reads=[])
        graph.edges[maker, reader]["reads"].append((number, operand))

    for value in function.inputs:
        graph.add_node(value, kind="input")
    for node in function.nodes:
        graph.add_node(node, kind="node")
        for number, operand in enumerate(node.inputs):
            if operand is not None:
                read(node, number, operand)
        makers.update(dict.fromkeys(node.outputs, node))
    for name, operand in zip(function.output_names, function.outputs):
        graph.add_node(("output", name), kind="output")
        read(("output", name), 0, operand)
    for name, operand in function.updates.items():
        graph.add_node(("update", name), kind="update")
        read(("update", name), 0, operand)
    return graph


def to_dot(function: Function) -> str:
    """The graph in Graphviz's language, one box for each node with its line of the text form."""
    graph, printer = to_networkx(function), FunctionPrinter(function)
    numbers = {vertex: f"n{number}" for number, vertex in enumerate(graph)}

    def label(vertex: Any, kind: str) -> str:
        if kind == "node":
            return printer.line(vertex).text
        return " ".join(vertex) if isinstance(vertex, tuple) else f"{printer.operand(vertex)}: {vertex.type}"

    def escape(text: str) -> str:
        return quote(text.replace("\\", "/").replace('"', "'"))

    lines = [f"  {numbers[v]} [shape=box, label={escape(label(v, kind))}];" for v, kind in graph.nodes(data="kind")]
    for maker, reader, reads in graph.edges(data="reads"):
        names = ", ".join(printer.operand(operand) for _, operand in reads)
        lines.append(f"  {numbers[maker]} -> {numbers[reader]} [label={escape(names)}];")
    return "\n".join(["digraph {", *lines, "}"]) + "\n"
