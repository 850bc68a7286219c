"""Two movements or casts in a row that are one, and pairs that undo each other."""

from __future__ import annotations

import torch

from planish.ir.module import Module, Node, Operand
from planish.ir.op import Chooser
from planish.ir.types import TensorType
from planish.passes.canonical.identities import CASTS, PERMUTATIONS
from planish.passes.canonical.support import FLOATS, Arguments, chain_module, chained_rule, draw_type
from planish.passes.graph import Graph
from planish.passes.rewrite import Found, Match, Replacement

VIEWS = (
    "view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "squeeze.dim", "flatten.using_ints",
    "unflatten.int",
)  # fmt: skip
UNDONE = ("neg.default", "logical_not.default", "bitwise_not.default")

# Every value of the left dtype is a value of each dtype on the right.
LOSSLESS: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.bool: (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS),
    torch.uint8: (torch.int16, torch.int32, torch.int64, *FLOATS),
    torch.int8: (torch.int16, torch.int32, torch.int64, *FLOATS),
    torch.int16: (torch.int32, torch.int64, torch.float32, torch.float64),
    torch.int32: (torch.int64, torch.float64),
    torch.float16: (torch.float32, torch.float64),
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float32: (torch.float64,),
}


def order_of(node: Node, graph: Graph) -> tuple[int, ...]:
    """For each axis of a permutation's result, the axis of its operand."""
    arguments, rank = graph.arguments(node), node.output.type.rank
    order = list(range(rank))
    if "dims" in arguments:
        return tuple(d % rank for d in arguments["dims"])
    if "dim0" in arguments and rank:
        a, b = arguments["dim0"] % rank, arguments["dim1"] % rank
        order[a], order[b] = order[b], order[a]
    elif rank > 1:
        order.reverse()
    return tuple(order)


def _find_views(outer: Node, inner: Node, graph: Graph) -> Found:
    return Match(outer.outputs, (inner, outer), {"x": graph.arguments(inner)["self"], "shape": outer.output.type.shape})


def _build_view(to: Replacement, match: Match) -> Operand:
    x: Operand = match["x"]
    return x if x.type == match.outputs[0].type else to.call("reshape.default", self=x, shape=match["shape"])


def _sample_views(choose: Chooser) -> Module:
    a, b, c = (choose.integer(1, 4) for _ in range(3))
    kind = TensorType(choose.choice(list(FLOATS)), (a, b, c))
    last = choose.choice([(a, b, c), (a, b * c), (c, b, a), (a * b, c)])
    return chain_module(kind, [("view.default", {"size": (a * b * c,)}), ("view.default", {"size": last})])


# A reshape reads elements in order whatever the strides, so two of them are the last one.
VIEW_OF_VIEW = chained_rule("reshape of a reshape", VIEWS, _find_views, _build_view, _sample_views)


def _find_permutations(outer: Node, inner: Node, graph: Graph) -> Found:
    first, second = order_of(inner, graph), order_of(outer, graph)
    order = tuple(first[axis] for axis in second)
    return Match(outer.outputs, (inner, outer), {"x": graph.arguments(inner)["self"], "order": order})


def _build_permutation(to: Replacement, match: Match) -> Operand:
    x: Operand = match["x"]
    if match["order"] == tuple(range(len(match["order"]))):
        return x
    return to.call("permute.default", self=x, dims=match["order"])


def _sample_permutations(choose: Chooser) -> Module:
    kind = draw_type(choose, rank=choose.integer(2, 4))
    calls: list[tuple[str, Arguments]] = []
    for _ in range(2):
        order = list(range(kind.rank))
        for n in range(kind.rank - 1, 0, -1):
            swap = choose.integer(0, n)
            order[n], order[swap] = order[swap], order[n]
        axes = {"dim0": choose.integer(0, kind.rank - 1), "dim1": -1}
        options: list[tuple[str, Arguments]] = [("permute.default", {"dims": tuple(order)}), ("transpose.int", axes)]
        calls.append(choose.choice(options))
    return chain_module(kind, calls)


PERMUTATION_OF_PERMUTATION = chained_rule(
    "permutation of a permutation", PERMUTATIONS, _find_permutations, _build_permutation, _sample_permutations
)


def _find_casts(outer: Node, inner: Node, graph: Graph) -> Found:
    x: Operand = graph.arguments(inner)["self"]
    middle, last = inner.output.type.dtype, outer.output.type.dtype
    if middle not in LOSSLESS.get(x.type.dtype, ()):
        return None
    if last not in (x.type.dtype, *LOSSLESS.get(x.type.dtype, ())) and not _same_rounding(x.type.dtype, middle, last):
        return None
    return Match(outer.outputs, (inner, outer), {"x": x, "dtype": last})


def _same_rounding(first: torch.dtype, middle: torch.dtype, last: torch.dtype) -> bool:
    """Whether casting through a wider float first gives the same value: it does when both are floats, rounded once."""
    return first.is_floating_point and middle.is_floating_point and last.is_floating_point


def _build_cast(to: Replacement, match: Match) -> Operand:
    x: Operand = match["x"]
    return x if x.type == match.outputs[0].type else to.call("_to_copy.default", self=x, dtype=match["dtype"])


def _sample_casts(choose: Chooser) -> Module:
    first = choose.choice(list(LOSSLESS))
    middle = choose.choice(list(LOSSLESS[first]))
    calls = [("_to_copy.default", {"dtype": middle}), ("_to_copy.default", {"dtype": first})]
    return chain_module(draw_type(choose, dtype=first), calls)


# A first cast that loses nothing can be left out; one that rounds is rounding on purpose and stays.
CAST_OF_CAST = chained_rule("cast of a lossless cast", CASTS, _find_casts, _build_cast, _sample_casts)


def _find_undone(outer: Node, inner: Node, graph: Graph) -> Found:
    if outer.op.key() != inner.op.key() or outer.output.type != inner.inputs[0].type:  # type: ignore[union-attr]
        return None
    return Match(outer.outputs, (inner, outer), {"x": inner.inputs[0]})


def _sample_undone(choose: Chooser) -> Module:
    overload = choose.choice(list(UNDONE))
    dtype = choose.choice(list(FLOATS)) if overload == "neg.default" else torch.bool
    return chain_module(draw_type(choose, dtype=dtype), [(overload, {}), (overload, {})])


TWICE_UNDONE = chained_rule(
    "negation of a negation", UNDONE, _find_undone, lambda to, match: to.operand(match["x"]), _sample_undone
)

RULES = (VIEW_OF_VIEW, PERMUTATION_OF_PERMUTATION, CAST_OF_CAST, TWICE_UNDONE)
