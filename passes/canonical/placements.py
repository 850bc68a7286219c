"""Tensors filled piece by piece, as code does that allocates first and writes into slices, become joins of the pieces."""

from __future__ import annotations

from typing import Any

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand
from planish.ir.op import Chooser
from planish.passes.canonical.support import draw_type
from planish.passes.graph import Graph
from planish.passes.patterns import aten_call
from planish.passes.rewrite import Found, Match, Replacement, Rule

WRITE = "slice_scatter.default"


def _find_overwritten(node: Node, graph: Graph) -> Found:
    source = graph.arguments(node)["src"]
    return Match(node.outputs, (node,), {"x": source}) if source.type == node.output.type else None


def _sample_overwritten(choose: Chooser) -> Module:
    builder = Builder("forward")
    kind = draw_type(choose)
    under, over = builder.input("under", kind), builder.input("over", kind)
    y = builder.emit(*aten_call("copy.default", {"self": under, "src": over}))
    return Module({"forward": builder.finish([y], ["y"])})


# What is copied over a whole tensor is what is there afterwards.
OVERWRITTEN = Rule(
    "copy over a whole tensor",
    frozenset({"copy.default"}),
    _find_overwritten,
    lambda to, match: to.operand(match["x"]),
    _sample_overwritten,
)


def _bounds(arguments: dict[str, Any], size: int) -> tuple[int, int] | None:
    """(start, end) of a write, as Python slices read them; None with a step, or with bounds known at run time only."""
    start, end = arguments["start"], arguments["end"]
    start, end = 0 if start is None else start, size if end is None else end
    if arguments["step"] != 1 or not isinstance(start, int) or not isinstance(end, int):
        return None
    first, last, _ = slice(start, end).indices(size)
    return first, last


def _find_pieces(node: Node, graph: Graph) -> Found:
    """Writes one into the other along one axis, up to the one with which they cover it without overlapping."""
    rank = node.output.type.rank
    axis = graph.arguments(node)["dim"] % rank
    size = node.output.type.shape[axis]
    if not isinstance(size, int):
        return None
    pieces: dict[int, tuple[int, Operand]] = {}
    nodes: list[Node] = []
    writer: Node | None = node
    while writer is not None and graph.is_call(writer.output, WRITE):
        arguments = graph.arguments(writer)
        bounds = _bounds(arguments, size)
        if arguments["dim"] % rank != axis or bounds is None:
            return None
        first, last = bounds
        if any(first < end and start < last for start, (end, _) in pieces.items()):
            return None
        if first < last:
            pieces[first] = (last, arguments["src"])
        nodes.append(writer)
        if sum(end - start for start, (end, _) in pieces.items()) == size:
            sources = tuple(pieces[start][1] for start in sorted(pieces))
            alike = all(s.type.dtype == node.output.type.dtype for s in sources)
            return Match(node.outputs, tuple(reversed(nodes)), {"pieces": sources, "axis": axis}) if alike else None
        writer = graph.producer(arguments["self"])
    return None


def _build_pieces(to: Replacement, match: Match) -> Operand:
    pieces: tuple[Operand, ...] = match["pieces"]
    return to.operand(pieces[0]) if len(pieces) == 1 else to.call("cat.default", tensors=pieces, dim=match["axis"])


def _sample_pieces(choose: Chooser) -> Module:
    """Up to three pieces written in any order into an input, the last of which may be given without an end."""
    builder = Builder("forward")
    kind = draw_type(choose)
    axis, sizes = choose.integer(0, kind.rank - 1), [choose.integer(1, 3) for _ in range(choose.integer(1, 3))]
    shape = [*kind.shape[:axis], sum(sizes), *kind.shape[axis + 1 :]]
    value = builder.input("under", kind.with_shape(shape))
    left = list(range(len(sizes)))
    while left:
        piece = left.pop(choose.integer(0, len(left) - 1))
        start, end = sum(sizes[:piece]), sum(sizes[: piece + 1])
        source = builder.input(f"x{piece}", kind.with_shape([*shape[:axis], sizes[piece], *shape[axis + 1 :]]))
        past = end == sum(sizes) and choose.boolean()
        call = {"self": value, "src": source, "dim": axis, "start": start, "end": 2**63 - 1 if past else end}
        value = builder.emit(*aten_call(WRITE, call))
    return Module({"forward": builder.finish([value], ["y"])})


# What was there before is overwritten, and what is written in between is read by later writes only.
PIECES = Rule(
    "pieces written side by side", frozenset({WRITE}), _find_pieces, _build_pieces, _sample_pieces, keeps_shared=True
)

RULES = (OVERWRITTEN, PIECES)
