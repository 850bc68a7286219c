"""Attention over the latent from which keys and values are projected (DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1).

    k[h] = [c @ A[h]^T, r]      v[h] = c @ B[h]^T      y[h] = attention(q[h] = [p[h], s[h]], k[h], v[h])
      -->  l = [c, r]           y[h] = attention([p[h] @ A[h], s[h]], l, l)[: size of c] @ B[h]^T

for a latent c [batch, length, rank] that all heads share, parts r of the keys that all heads share (a rotary part, say)
and one key-value head of every query head. The scores are the same, because <p, A c> = <A^T p, c>, and so is the weighted
sum of the values, because the weights of a query are the same for each of their elements. Keys and values become one
tensor, which is narrower: each position keeps `rank` + `size of r` elements in place of heads x (key size + value size).

Attention's work grows meanwhile, from (key size + value size) to 2 (rank + size of r) products for a query head and a
key. The rule fires when the tensor shrinks by at least the factor by which the work grows. So the latent of multi-head
latent attention is absorbed, and the hidden states of an ordinary model, from which its keys and values follow just as
well, are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from planish.ir.builder import Builder
from planish.ir.encodings import Dense
from planish.ir.module import Module, Node, Operand, ParamRef, Value
from planish.ir.op import Chooser
from planish.ir.ops import Attention, Linear, Slot, aten
from planish.ir.params import Computed, Param, Storage, dense_param
from planish.ir.types import Dim, TensorType, symbol
from planish.passes.graph import Graph
from planish.passes.narrowing.elements import Columns, columns, origin, row_length
from planish.passes.raising.draws import F32, small_integers
from planish.passes.raising.rope import Reader
from planish.passes.rewrite import Match, Replacement, Rule

Q, K, V = 0, 1, 2
RESHAPES = ("view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "clone.default")


@dataclass(frozen=True)
class Picked:
    """The storage of a parameter [heads, rows, rank] made of rows of weights; each head transposed if `turned`."""

    weights: tuple[Param, ...]
    rows: torch.Tensor
    turned: bool
    encoding: Dense

    def __call__(self) -> Storage:
        return self.encoding.encode(self._pick([w.value() for w in self.weights]))

    def wide(self) -> torch.Tensor:
        return self._pick([w.wide_value() for w in self.weights])

    def _pick(self, weights: list[torch.Tensor]) -> torch.Tensor:
        picked = torch.cat(weights)[self.rows]
        return (picked.transpose(1, 2) if self.turned else picked).contiguous()


def _find(node: Node, graph: Graph) -> Match | str | None:
    q, k, v = node.inputs[:3]
    assert isinstance(node.op, Attention) and q is not None and k is not None and v is not None
    heads = k.type.shape[2]
    if not isinstance(heads, int) or not all(isinstance(o.type.shape[3], int) for o in (k, v)):
        return None
    rows = (k.type.shape[0], k.type.shape[1])
    keys, values = (None if o is None else columns(o, rows) for o in (origin(k, graph), origin(v, graph)))
    if keys is None or values is None:
        return None
    shared = _shared_by_heads(keys)
    projected = [n for n in range(keys.place.shape[1]) if n not in shared]
    of_keys, of_values = _used(keys, projected), _used(values, range(values.place.shape[1]))
    sources = dict.fromkeys((*of_keys, *of_values))
    projections = {s: n for s in sources if (n := graph.producer(s)) is not None and isinstance(n.op, Linear)}
    if not any(s in projections for s in of_keys) or not all(s in projections for s in of_values):
        return None
    latents = {_latent(node.inputs[0], graph) for node in projections.values()}
    latent = latents.pop() if len(latents) == 1 else None
    rank = None if latent is None else row_length(latent.type, rows)
    if rank is None:
        return None
    if len(projections) < len(sources):
        return "the parts of its keys that are not projected from the latent of its values differ between heads"
    if q.type.shape[2] != heads:
        return f"its {q.type.shape[2]} query heads share {heads} key-value heads projected from {rank} elements"
    before, after = heads * (k.type.shape[3] + v.type.shape[3]), rank + len(shared)
    growth = 2 * after / (k.type.shape[3] + v.type.shape[3])
    if before < growth * after:
        return (
            f"keys and values of {before} elements a position follow from {after}, but attention over these is "
            f"{growth:.3g} times the work"
        )
    weights = [node.inputs[1] for node in projections.values()]
    if any(node.inputs[2] is not None for node in projections.values()):
        return "the projection of its keys and values has a bias"
    if not all(isinstance(w, ParamRef) and isinstance(graph.module.params[w.name].encoding, Dense) for w in weights):
        return "the weight of the projection of its keys and values is no dense parameter"
    captures = {
        "op": node.op, "operands": node.inputs, "latent": latent, "rank": rank, "projections": projections,
        "keys": keys, "values": values, "projected": tuple(projected), "shared": tuple(shared), "sources": keys.sources,
    }  # fmt: skip
    return Match((node.output,), (node,), captures)


def _used(found: Columns, elements: Iterable[int]) -> list[Value]:
    """The tensors from which some elements of the heads come."""
    return [found.sources[int(n)] for n in found.source[:, list(elements)].unique()]


def _shared_by_heads(keys: Columns) -> list[int]:
    """The elements that are the same in all of several heads."""
    alike = (keys.source == keys.source[:1]).all(0) & (keys.place == keys.place[:1]).all(0)
    return alike.nonzero()[:, 0].tolist() if len(keys.place) > 1 else []


def _latent(operand: Operand | None, graph: Graph) -> Value | None:
    """What a linear map reads, before reshapes."""
    found = Reader(graph).strip(operand, *RESHAPES)
    return found if isinstance(found, Value) else None


def _build(to: Replacement, match: Match) -> Operand:
    operands, rank = list(match["operands"]), match["rank"]
    q, keys, values = operands[Q], match["keys"], match["values"]
    projected, shared = match["projected"], match["shared"]
    batch, length = q.type.shape[:2]
    towards = _weight(to, match, keys, projected, "keys", turned=False)
    query = _by_head(to, _elements(to, q, projected), towards)
    if shared:
        query = to.call("cat.default", tensors=(query, _elements(to, q, shared)), dim=-1)
    parts = [_reshaped(to, match["latent"], (batch, length, 1, rank)), *_shared(to, match, batch, length)]
    latent = to.call("cat.default", tensors=tuple(parts), dim=-1) if len(parts) > 1 else parts[0]
    operands[Q], operands[K], operands[V] = query, latent, latent
    seen = _elements(to, to.emit(match["op"], *operands), tuple(range(rank)))
    back = _weight(to, match, values, tuple(range(values.place.shape[1])), "values", turned=True)
    return _by_head(to, seen, back)


def _weight(
    to: Replacement, match: Match, found: Columns, elements: tuple[int, ...], role: str, *, turned: bool
) -> ParamRef:
    """The rows of the projection behind some elements of each head: [heads, elements, rank], or turned."""
    refs = {s: match["projections"][s].inputs[1] for s in found.sources if s in match["projections"]}
    params = {s: to.graph.module.params[r.name] for s, r in refs.items()}
    offsets, total = [], 0
    for source in found.sources:
        offsets.append(total)
        total += int(params[source].type.shape[0]) if source in params else 0
    rows = (torch.tensor(offsets)[found.source] + found.place)[:, list(elements)]
    first = next(iter(params.values()))
    # Rows of weights that are stored alike need no wider storage.
    alike = all(p.encoding == first.encoding for p in params.values())
    encoding = first.encoding if alike and isinstance(first.encoding, Dense) else Dense(first.type.dtype)
    picked = Picked(tuple(params.values()), rows, turned, encoding)
    shape = (rows.shape[0], match["rank"], rows.shape[1]) if turned else (*rows.shape, match["rank"])
    kind = TensorType(first.type.dtype, shape)
    return to.param(Param(role, kind, encoding, Computed(picked, picked.wide)), f"{first.name}.{role}")


def _by_head(to: Replacement, x: Value, weight: ParamRef) -> Value:
    """x [batch, length, heads, n] times weight [heads, n, m], head by head."""
    product = to.call("matmul.default", self=to.call("transpose.int", self=x, dim0=1, dim1=2), other=weight)
    return to.call("transpose.int", self=product, dim0=1, dim1=2)


def _shared(to: Replacement, match: Match, batch: Dim, length: Dim) -> list[Value]:
    """The parts of the keys that all heads share, each from one source, in the keys' order: [batch, length, 1, n]."""
    keys: Columns = match["keys"]
    parts: list[tuple[int, list[int]]] = []
    for element in match["shared"]:
        source, place = int(keys.source[0, element]), int(keys.place[0, element])
        if not parts or parts[-1][0] != source:
            parts.append((source, []))
        parts[-1][1].append(place)
    made = []
    for source, places in parts:
        value: Value = match["sources"][source]
        width = row_length(value.type, (batch, length))
        assert width is not None
        made.append(_elements(to, _reshaped(to, value, (batch, length, 1, width)), tuple(places)))
    return made


def _reshaped(to: Replacement, x: Value, shape: Sequence[Dim]) -> Value:
    return x if x.type == x.type.with_shape(shape) else to.call("reshape.default", self=x, shape=tuple(shape))


def _elements(to: Replacement, x: Value, places: tuple[int, ...]) -> Value:
    """Some elements of the last axis."""
    first, count = places[0], len(places)
    if places == tuple(range(first, first + count)):
        if count == x.type.shape[-1]:
            return x
        return to.call("slice.Tensor", self=x, dim=-1, start=first, end=first + count)
    index = to.param(torch.tensor(places), "elements")
    return to.call("index_select.default", self=x, dim=-1, index=index)


def _sample(choose: Chooser) -> Module:
    """Keys and values from one joint projection or from one each, with a part that all heads share or without."""
    b = Builder("forward")
    batch, length = symbol("B"), symbol("S")
    heads, rank = choose.integer(2, 4), choose.integer(1, 3)
    part, value_size, extra = choose.integer(2, 4), choose.integer(2, 4), choose.integer(0, 2)
    q = b.input("q", TensorType(F32, (batch, length, heads, part + extra)))
    latent = b.input("latent", TensorType(F32, (batch, length, rank)))
    params = {}

    def projected(name: str, size: int) -> Value:
        params[name] = dense_param(name, small_integers(choose, heads * size, rank))
        y = b.emit(Linear(), latent, ParamRef(name, params[name].type), None)
        return b.emit(aten("reshape.default", Slot(0), [batch, length, heads, size]), y)

    if choose.boolean():
        joint = b.emit(aten("transpose.int", Slot(0), 1, 2), projected("kv", part + value_size))
        pieces = b.node(aten("split_with_sizes.default", Slot(0), [part, value_size], -1), joint).outputs
        k, v = (b.emit(aten("transpose.int", Slot(0), 1, 2), piece) for piece in pieces)
    else:
        k, v = projected("k", part), projected("v", value_size)
    if extra:
        shared = b.input("shared", TensorType(F32, (batch, length, 1, extra)))
        shared = b.emit(aten("expand.default", Slot(0), [-1, -1, heads, -1]), shared)
        ends = (k, shared) if choose.boolean() else (shared, k)
        k = b.emit(aten("cat.default", (Slot(0), Slot(1)), -1), *ends)
    op = Attention(scale=0.25, window=choose.choice([None, 2]), softcap=choose.choice([None, 5.0]))
    y = b.emit(op, q, k, v, *[None] * 6)
    return Module({"forward": b.finish([y], ["y"])}, params)


RULES: tuple[Rule, ...] = (Rule("absorbed projection", frozenset({"attention"}), _find, _build, _sample),)
