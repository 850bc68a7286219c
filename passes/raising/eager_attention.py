"""Attention spelt out as products and a softmax --> `attention`.

Recognised is softmax(scores) @ v, where the scores are q @ k^T, scaled, softly capped, and added to or filled by masks in
any order that the operation can express, on [batch, heads, length, size] or [batch * heads, length, size].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand, Value
from planish.ir.op import Chooser
from planish.ir.ops import Attention, Slot, aten
from planish.ir.types import Dim, TensorType, same_dim
from planish.passes.graph import Graph
from planish.passes.raising.draws import F32
from planish.passes.raising.rope import CASTS, Reader
from planish.passes.rewrite import Match, Replacement, Rule

VIEWS = ("view.default", "reshape.default", "_unsafe_view.default", "expand.default")
SWALLOWS = -1e30
PRODUCTS = ("bmm.default", "matmul.default")


@dataclass(frozen=True)
class Scores:
    """softcap * tanh(scale * q @ k^T / softcap) + the sum of `added`, -inf or the like where a fill says so.

    k is `keys` with its axes in the order `order`.
    """

    q: Value
    keys: Value
    order: tuple[int, ...]
    scale: float = 1.0
    softcap: float | None = None
    added: tuple[Value, ...] = ()
    filled: tuple[tuple[Value, float], ...] = ()

    @property
    def plain(self) -> bool:
        return self.softcap is None and not self.added and not self.filled


def _scores(reader: Reader, operand: object) -> Scores | None:
    """Read scores outside in; None when anything in them is not understood."""
    operand = reader.strip(operand, *CASTS, *VIEWS)
    added = reader.call(operand, "add.Tensor")
    if added is not None:
        return _added(reader, added)
    filled = reader.call(operand, "masked_fill.Scalar")
    if filled is not None:
        inner, value = _scores(reader, filled["self"]), float(filled["value"])
        # Adding the value does what filling does only if it swallows every score.
        usable = inner is not None and value < SWALLOWS
        return replace(inner, filled=(*inner.filled, (filled["mask"], value))) if usable and inner else None
    scaled = reader.call(operand, "mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar")
    if scaled is not None:
        return _scaled(reader, scaled, operand)
    biased = reader.call(operand, "baddbmm.default")
    if biased is not None:
        product = _product(reader, biased["batch1"], biased["batch2"])
        usable = product is not None and biased["beta"] == 1
        return replace(product, scale=float(biased["alpha"]), added=(biased["self"],)) if usable and product else None
    factors = reader.call(operand, *PRODUCTS)
    return None if factors is None else _product(reader, *list(factors.values())[:2])


def _added(reader: Reader, added: dict[str, Any]) -> Scores | None:
    if added["alpha"] != 1:
        return None
    for inner, term in ((added["self"], added["other"]), (added["other"], added["self"])):
        mark = len(reader.nodes)
        scores = _scores(reader, inner)
        if scores is not None and isinstance(term, Value):
            return replace(scores, added=(*scores.added, term))
        del reader.nodes[mark:]
    return None


def _scaled(reader: Reader, scaled: dict[str, Any], operand: object) -> Scores | None:
    factor = scaled["other"]
    if not isinstance(factor, (int, float)) or isinstance(factor, bool):
        return None
    node = reader.graph.producer(operand)
    divides = node is not None and reader.graph.is_call(operand, "div.Tensor", "div.Scalar")
    capped = None if divides else reader.call(reader.strip(scaled["self"], *CASTS), "tanh.default")
    inner = _scores(reader, capped["self"] if capped else scaled["self"])
    if inner is None or not inner.plain:
        return None
    if capped is not None:
        return replace(inner, scale=inner.scale * factor, softcap=float(factor))
    return replace(inner, scale=inner.scale / factor if divides else inner.scale * factor)


def _product(reader: Reader, q: object, transposed: object) -> Scores | None:
    """q @ transpose(k), with q and k of rank 3 or 4; scales applied to q beforehand stay where they are.

    The transposition may have become one with another that puts heads before positions.
    """
    turned = reader.call(transposed, "transpose.int", "permute.default")
    if turned is None or not isinstance(q, Value) or q.type.rank not in (3, 4):
        return None
    keys, rank = turned["self"], q.type.rank
    if not isinstance(keys, Value) or keys.type.rank != rank:
        return None
    order = list(range(rank))
    if "dims" in turned:
        order = [d % rank for d in turned["dims"]]
    else:
        a, b = turned["dim0"] % rank, turned["dim1"] % rank
        order[a], order[b] = order[b], order[a]
    order[-1], order[-2] = order[-2], order[-1]
    return Scores(q, keys, tuple(order)) if same_dim(keys.type.shape[order[-1]], q.type.shape[-1]) else None


def _find(node: Node, graph: Graph) -> Match | str | None:
    reader = Reader(graph)
    probabilities, v = list(graph.arguments(node).values())[:2]
    softmax = reader.call(reader.strip(probabilities, *CASTS, *VIEWS), "softmax.int")
    if softmax is None or not isinstance(v, Value):
        return None
    kind = softmax["self"].type
    if softmax["dim"] % kind.rank != kind.rank - 1:
        return None
    scores = _scores(reader, softmax["self"])
    if scores is None:
        return "the scores of this softmax are not a scaled product of queries and keys plus masks"
    if not scores.q.type.rank == scores.keys.type.rank == v.type.rank:
        return "queries, keys and values differ in rank"
    batch_heads = _batch_and_heads(kind, scores.q.type)
    if batch_heads is None:
        return f"scores of {kind} and queries of {scores.q.type} do not tell batch from heads"
    captures = {"scores": scores, "v": v, "batch": batch_heads, "q": scores.q, "k": scores.keys}
    captures |= {"added": scores.added, "filled": tuple(m for m, _ in scores.filled)}
    nodes = tuple(sorted({node, *reader.nodes}, key=graph.position.__getitem__))
    return Match((node.output,), nodes, captures)


def _batch_and_heads(scores: TensorType, q: TensorType) -> tuple[Dim, Dim] | None:
    if scores.rank == 4:
        return scores.shape[0], scores.shape[1]
    return (q.shape[0], 1) if scores.rank == 3 and q.rank == 3 else None


def _build(to: Replacement, match: Match) -> Operand:
    scores: Scores = match["scores"]
    batch, heads = match["batch"]

    def spread(x: Value) -> Value:
        """[batch, length, heads, size] of what the source holds with heads before length."""
        shape = [batch, heads, *x.type.shape[-2:]]
        whole = (
            x
            if x.type.rank == 4
            else to.emit(aten("view.default", Slot(0), shape), to.emit(aten("contiguous.default", Slot(0)), x))
        )
        return to.emit(aten("transpose.int", Slot(0), 1, 2), whole)

    k: Value = scores.keys
    if scores.order != tuple(range(k.type.rank)):
        k = to.call("permute.default", self=k, dims=scores.order)
    q, k, v = (spread(x) for x in (scores.q, k, match["v"]))
    bias = _bias(to, scores, batch, heads)
    op = Attention(scale=scores.scale, causal=False, softcap=scores.softcap)
    result = to.emit(aten("transpose.int", Slot(0), 1, 2), to.emit(op, q, k, v, *[None] * 5, bias))
    want = match.outputs[0].type
    return result if result.type == want else to.emit(aten("reshape.default", Slot(0), list(want.shape)), result)


def _bias(to: Replacement, scores: Scores, batch: Dim, heads: Dim) -> Value | None:
    """All masks as one tensor to add; later passes take it apart again."""
    terms = [_four_axes(to, t, batch, heads) for t in scores.added]
    for mask, value in scores.filled:
        filled = to.emit(aten("where.Scalar", Slot(0), value, 0.0), mask)
        terms.append(_four_axes(to, filled, batch, heads))
    total: Value | None = None
    for term in terms:
        total = term if total is None else to.emit(aten("add.Tensor", Slot(0), Slot(1)), total, term)
    return total


def _four_axes(to: Replacement, term: Value, batch: Dim, heads: Dim) -> Value:
    shape = term.type.shape
    if term.type.rank == 4:
        return term
    if term.type.rank == 3 and not same_dim(shape[0], 1) and not same_dim(heads, 1):
        return to.emit(aten("reshape.default", Slot(0), [batch, heads, *shape[1:]]), term)
    if term.type.rank == 3 and same_dim(heads, 1):
        return to.emit(aten("unsqueeze.default", Slot(0), 1), term)
    return to.emit(aten("reshape.default", Slot(0), [*[1] * (4 - term.type.rank), *shape]), term)


def _sample(choose: Chooser) -> Module:
    """softmax(cap(q @ k^T * scale) + mask) @ v."""
    b = Builder("forward")
    batch, heads, length, size = choose.integer(1, 3), choose.integer(2, 3), choose.integer(2, 4), choose.integer(1, 4)
    flat = choose.boolean()
    shape = (batch * heads, length, size) if flat else (batch, heads, length, size)
    q, k, v = (b.input(n, TensorType(F32, shape)) for n in "qkv")
    turned = b.emit(aten("transpose.int", Slot(0), -1, -2), k)
    if not flat and choose.boolean():
        early = b.input("early", TensorType(F32, (batch, length, heads, size)))
        turned = b.emit(aten("permute.default", Slot(0), (0, 2, 3, 1)), early)
    if flat and choose.boolean():
        alibi = b.input("alibi", TensorType(F32, (batch * heads, 1, length)))
        scores = b.emit(aten("baddbmm.default", Slot(0), Slot(1), Slot(2), beta=1.0, alpha=0.5), alibi, q, turned)
    else:
        product = b.emit(aten("bmm.default" if flat else "matmul.default", Slot(0), Slot(1)), q, turned)
        scores = b.emit(aten(choose.choice(["mul.Tensor", "div.Tensor"]), Slot(0), 2.0), product)
        if choose.boolean():
            capped = b.emit(aten("tanh.default", Slot(0)), b.emit(aten("div.Tensor", Slot(0), 3.0), scores))
            scores = b.emit(aten("mul.Tensor", Slot(0), 3.0), capped)
    if flat:
        scores = b.emit(aten("view.default", Slot(0), [batch, heads, length, length]), scores)
    if choose.boolean():
        mask = b.input("mask", TensorType(F32, (choose.choice([1, batch]), 1, length, length)))
        scores = b.emit(aten("add.Tensor", Slot(0), Slot(1)), scores, mask)
    if choose.boolean():
        hidden = b.input("hidden", TensorType(torch.bool, (length, length)))
        scores = b.emit(aten("masked_fill.Scalar", Slot(0), Slot(1), float("-inf")), scores, hidden)
    probabilities = b.emit(aten("softmax.int", Slot(0), -1), scores)
    if flat:
        probabilities = b.emit(aten("view.default", Slot(0), [batch * heads, length, length]), probabilities)
    y = b.emit(aten("bmm.default" if flat else "matmul.default", Slot(0), Slot(1)), probabilities, v)
    return Module({"forward": b.finish([y], ["y"])})


EAGER = Rule("attention spelt out", frozenset(PRODUCTS), _find, _build, _sample)

RULES: tuple[Rule, ...] = (EAGER,)
