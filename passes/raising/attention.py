"""Attention: masks given as tensors become descriptions, and torch's own attention calls become `attention`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand, Value
from planish.ir.op import Chooser
from planish.ir.ops import Attention, Slot, aten
from planish.ir.types import TensorType, symbol
from planish.passes.graph import Graph
from planish.passes.patterns import OneOf, call
from planish.passes.raising.alibi import alibi_slopes
from planish.passes.raising.draws import F32
from planish.passes.raising.index_terms import IndexTerms
from planish.passes.raising.masks import Mask, describe, visible_where
from planish.passes.rewrite import Match, Replacement, Rule, pattern_rule

PADDING, START, SLOPES, BIAS = 3, 4, 6, 8

_TERMS: WeakKeyDictionary[Graph, IndexTerms] = WeakKeyDictionary()
_MASKS: WeakKeyDictionary[Value, Mask | None] = WeakKeyDictionary()


def _mask_of(bias: object, graph: Graph) -> Mask | None:
    """The description of an additive mask. All layers share one mask, so it is read once."""
    if not isinstance(bias, Value):
        return None
    if bias not in _MASKS:
        if graph not in _TERMS:
            masks = frozenset(v.name for v in graph.function.inputs if not v.type.dtype.is_floating_point)
            _TERMS[graph] = IndexTerms(graph.module, graph.function, masks)
        term = _TERMS[graph].of(bias)
        condition = None if term is None else visible_where(term)
        _MASKS[bias] = None if condition is None else describe(condition)
    return _MASKS[bias]


def _terms(bias: object, graph: Graph) -> list[Value]:
    """What is added up to a bias."""
    if not isinstance(bias, Value):
        return []
    node = graph.producer(bias)
    if node is not None and graph.is_call(bias, "add.Tensor"):
        added = graph.arguments(node)
        if added["alpha"] == 1 and all(isinstance(added[n], Value) for n in ("self", "other")):
            return [*_terms(added["self"], graph), *_terms(added["other"], graph)]
    return [bias]


def _find_described(node: Node, graph: Graph) -> Match | str | None:
    if node.inputs[BIAS] is None or node.inputs[START] is not None:
        return None
    op, padding, slopes = node.op, node.inputs[PADDING], node.inputs[SLOPES]
    assert isinstance(op, Attention)
    rest: list[Value] = []
    for term in _terms(node.inputs[BIAS], graph):
        mask, found = _mask_of(term, graph), alibi_slopes(term, graph)
        if mask is not None and not _overlaps(mask, op, padding):
            op = replace(
                op, causal=op.causal or mask.causal, window=mask.window or op.window, chunk=mask.chunk or op.chunk
            )
            padding = padding or next((v for v in graph.function.inputs if v.name == mask.padding), None)
        elif found is not None and slopes is None:
            slopes = found
        else:
            rest.append(term)
    if len(rest) == len(_terms(node.inputs[BIAS], graph)):
        return (
            f"its mask {rest[0]} is no conjunction of causal, window, chunk and padding conditions and stays a tensor"
        )
    captures = {"op": op, "padding": padding, "slopes": slopes, "operands": node.inputs, "rest": tuple(rest)}
    return Match((node.output,), (node,), captures)


def _overlaps(mask: Mask, op: Attention, padding: object) -> bool:
    """Whether a mask says again what is described already, perhaps differently."""
    twice = [n for n in ("window", "chunk") if getattr(mask, n) is not None and getattr(op, n) is not None]
    return bool(twice) or (mask.padding is not None and padding is not None)


def _build_described(to: Replacement, match: Match) -> Operand:
    operands = list(match["operands"])
    padding = match["padding"]
    if padding is not None and padding.type.dtype != torch.bool:
        padding = to.emit(aten("ne.Scalar", Slot(0), 0), padding)
    bias: Value | None = None
    for term in match["rest"]:
        bias = term if bias is None else to.emit(aten("add.Tensor", Slot(0), Slot(1)), bias, term)
    slopes = match["slopes"]
    if slopes is not None and slopes.type.rank != 1:
        slopes = to.emit(aten("reshape.default", Slot(0), [match.outputs[0].type.shape[2]]), slopes)
    operands[PADDING], operands[SLOPES], operands[BIAS] = padding, slopes, bias
    return to.emit(match["op"], *operands)


def _sample_described(choose: Chooser) -> Module:
    """Attention under where(conditions on indices, 0, -inf)."""
    b = Builder("forward")
    batch, length = symbol("B"), symbol("S")
    heads, size = choose.integer(1, 2), choose.integer(1, 3)
    q, k, v = (b.input(n, TensorType(F32, (batch, length, heads, size))) for n in "qkv")
    padding = b.input("padding", TensorType(choose.choice([torch.bool, torch.int64]), (batch, length)))
    index = b.emit(aten("arange.default", length))
    query = b.emit(aten("view.default", Slot(0), [1, 1, length, 1]), index)
    key = b.emit(aten("view.default", Slot(0), [1, 1, 1, length]), index)
    parts = [b.emit(aten("le.Tensor", Slot(0), Slot(1)), key, query)]
    if choose.boolean():
        oldest = b.emit(aten("sub.Tensor", Slot(0), choose.integer(1, 4)), query)
        parts.append(b.emit(aten("gt.Tensor", Slot(0), Slot(1)), key, oldest))
    if choose.boolean():
        size = choose.integer(2, 4)
        pair = [b.emit(aten("floor_divide.default", Slot(0), size), i) for i in (query, key)]
        parts.append(b.emit(aten("eq.Tensor", Slot(0), Slot(1)), *pair))
    if choose.boolean():
        row = b.emit(aten("view.default", Slot(0), [batch, 1, 1, length]), padding)
        parts.append(
            row if row.type.dtype == torch.bool else b.emit(aten("_to_copy.default", Slot(0), dtype=torch.bool), row)
        )
    mask = parts[0]
    for part in parts[1:]:
        mask = b.emit(aten("bitwise_and.Tensor", Slot(0), Slot(1)), mask, part)
    bias = b.emit(aten("where.Scalar", Slot(0), 0.0, float("-inf")), mask)
    softcap = choose.choice([None, 2.0])
    y = b.emit(Attention(scale=0.5, causal=False, softcap=softcap), q, k, v, *[None] * 5, bias)
    return Module({"forward": b.finish([y], ["y"])})


DESCRIBE = Rule("describe the mask", frozenset({"attention"}), _find_described, _build_described, _sample_described)


def _sdpa_left(q: Any, k: Any, v: Any, mask: Any, *, causal: Any, scale: Any, grouped: Any) -> Any:
    return call(
        "scaled_dot_product_attention.default",
        q, k, v, OneOf((mask, None)), 0.0, causal, scale=scale, enable_gqa=grouped,
    )  # fmt: skip


def _sdpa_guard(match: Match, graph: Graph) -> str | None:
    kinds = [match[n].type for n in ("q", "k", "v")]
    if any(kind.rank != 4 for kind in kinds):
        return f"its operands {', '.join(map(str, kinds))} are not [batch, heads, length, size]"
    mask = match.captures.get("mask")
    if mask is not None and mask.type.rank > 4:
        return f"its mask {mask.type} has more than four axes"
    return None


def _additive(to: Replacement, mask: Value) -> Value:
    """A mask as a tensor to add to scores, with four axes."""
    if mask.type.rank < 4:
        shape = [*[1] * (4 - mask.type.rank), *mask.type.shape]
        mask = to.emit(aten("view.default", Slot(0), shape), mask)
    if mask.type.dtype == torch.bool:
        mask = to.emit(aten("where.Scalar", Slot(0), 0.0, float("-inf")), mask)
    return mask


def _sdpa(to: Replacement, match: Match) -> Operand:
    q, k, v = (to.emit(aten("transpose.int", Slot(0), 1, 2), match[n]) for n in ("q", "k", "v"))
    size = match["q"].type.shape[3]
    scale = match["scale"] if match["scale"] is not None else float(size) ** -0.5
    mask = match.captures.get("mask")
    bias = None if mask is None else _additive(to, mask)
    result = to.emit(Attention(scale=scale, causal=match["causal"]), q, k, v, *[None] * 5, bias)
    return to.emit(aten("transpose.int", Slot(0), 1, 2), result)


def _draw_sdpa(choose: Chooser) -> Mapping[str, Any]:
    batch, kv_heads, length, size = (
        choose.integer(1, 2),
        choose.integer(1, 2),
        choose.integer(2, 4),
        choose.integer(1, 4),
    )
    grouped = choose.boolean()
    q = TensorType(F32, (batch, kv_heads * (2 if grouped else 1), length, size))
    kv = TensorType(F32, (batch, kv_heads, length, size))
    mask = TensorType(F32, choose.choice([(length, length), (batch, 1, length, length)]))
    # torch takes a mask or `is_causal`, not both, and the pattern draws the mask by itself.
    scale = choose.choice([None, 0.5])
    return {"q": q, "k": kv, "v": kv, "mask": mask, "causal": False, "scale": scale, "grouped": grouped}


SDPA = pattern_rule("scaled dot product attention", _sdpa_left, _sdpa, _draw_sdpa, _sdpa_guard)


def _draw_causal(choose: Chooser) -> Mapping[str, Any]:
    drawn = {**_draw_sdpa(choose), "causal": choose.boolean()}
    drawn.pop("mask")
    return drawn


CAUSAL_SDPA = pattern_rule(
    "scaled dot product attention without a mask",
    lambda q, k, v, *, causal, scale, grouped: _sdpa_left(q, k, v, None, causal=causal, scale=scale, grouped=grouped),
    _sdpa,
    _draw_causal,
    _sdpa_guard,
)

RULES: tuple[Rule, ...] = (SDPA, CAUSAL_SDPA, DESCRIBE)
