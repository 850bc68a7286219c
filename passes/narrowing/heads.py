"""Key-value heads that repeat are read once.

    attention(q, k, v), heads 0, 1, 2 and 3, 4, 5 of k and of v alike  -->  attention(q, k[:, :, ::3], v[:, :, ::3])

Query head h reads key-value head h // (heads / kv_heads), so with a third of the key-value heads it reads the same numbers.
"""

from __future__ import annotations

import torch

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand, Value
from planish.ir.op import Chooser
from planish.ir.ops import Attention, Slot, aten
from planish.ir.types import TensorType, symbol
from planish.passes.graph import Graph
from planish.passes.narrowing.elements import origin
from planish.passes.raising.draws import F32
from planish.passes.rewrite import Match, Replacement, Rule

K, V = 1, 2


def _find(node: Node, graph: Graph) -> Match | None:
    k, v = node.inputs[K], node.inputs[V]
    assert isinstance(node.op, Attention) and k is not None and v is not None
    heads = k.type.shape[2]
    if not isinstance(heads, int) or heads == 1:
        return None
    origins = [origin(o, graph) for o in ((k,) if k is v else (k, v))]
    elements = [(o.source, o.element) for o in origins if o is not None]
    if len(elements) < len(origins):
        return None
    moved = [tensor for pair in elements for tensor in pair]
    for repeats in range(heads, 1, -1):
        if heads % repeats == 0 and all(_repeat(tensor, repeats) for tensor in moved):
            return Match((node.output,), (node,), {"op": node.op, "operands": node.inputs, "repeats": repeats})
    return None


def _repeat(tensor: torch.Tensor, repeats: int) -> bool:
    """Whether each `repeats` heads in a row of a tensor [batch, length, heads, size] are one."""
    grouped = tensor.unflatten(2, (-1, repeats))
    return bool((grouped == grouped[:, :, :, :1]).all())


def _build(to: Replacement, match: Match) -> Operand:
    operands = list(match["operands"])
    keys, values = operands[K], operands[V]
    operands[K] = _every(to, keys, match["repeats"])
    operands[V] = operands[K] if values is keys else _every(to, values, match["repeats"])
    return to.emit(match["op"], *operands)


def _every(to: Replacement, heads: Operand, step: int) -> Value:
    return to.call("slice.Tensor", self=heads, dim=2, start=0, end=heads.type.shape[2], step=step)


def _sample(choose: Chooser) -> Module:
    """Heads repeated by an expansion, by repeat_interleave, or one head for all."""
    b = Builder("forward")
    batch, length = symbol("B"), symbol("S")
    kv_heads, repeats = choose.integer(1, 2), choose.integer(2, 3)
    heads, size, value_size = kv_heads * repeats * choose.integer(1, 2), choose.integer(1, 3), choose.integer(1, 3)
    q = b.input("q", TensorType(F32, (batch, length, heads, size)))
    narrow = [b.input(n, TensorType(F32, (batch, length, kv_heads, s))) for n, s in (("k", size), ("v", value_size))]
    interleave = choose.boolean()
    wide = []
    for x in narrow:
        if interleave:
            wide.append(b.emit(aten("repeat_interleave.self_int", Slot(0), repeats, 2), x))
        else:
            x = b.emit(aten("unsqueeze.default", Slot(0), 3), x)
            x = b.emit(aten("expand.default", Slot(0), [-1, -1, -1, repeats, -1]), x)
            shape = [batch, length, kv_heads * repeats, x.type.shape[4]]
            wide.append(b.emit(aten("reshape.default", Slot(0), shape), x))
    y = b.emit(Attention(scale=0.5), q, *wide, *[None] * 6)
    return Module({"forward": b.finish([y], ["y"])})


RULES: tuple[Rule, ...] = (Rule("repeated heads", frozenset({"attention"}), _find, _build, _sample),)
