"""Operations on flattened rows brought back to the axes they had.

    op(reshape(x [b, s, k] -> [b * s, k])) --> reshape(op(x [b, s, k]) -> [b * s, ...])

for operations that treat rows alike. Some models flatten batch and positions around their linear maps; left so, no
analysis could tell positions from rows of the batch.
"""

from __future__ import annotations

from typing import Any

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand, ParamRef, Value
from planish.ir.op import Chooser
from planish.ir.ops import Aten, LayerNorm, Linear, RmsNorm, Slot, aten
from planish.ir.params import dense_param
from planish.ir.types import Dim, TensorType, as_dim, same_dim
from planish.passes.graph import Graph
from planish.passes.raising.draws import F32, small_integers
from planish.passes.rewrite import Match, Replacement, Rule

RESHAPES = ("reshape.default", "view.default", "_unsafe_view.default")
ELEMENTWISE = frozenset(
    "relu.default silu.default gelu.default tanh.default sigmoid.default add.Tensor sub.Tensor mul.Tensor div.Tensor "
    "pow.Tensor_Scalar neg.default abs.default exp.default dropout.default".split()
)
ROOTS = ELEMENTWISE | {op.name for op in (Linear, LayerNorm, RmsNorm)}


def _product(shape: tuple[Dim, ...]) -> Dim:
    product: Dim = 1
    for dim in shape:
        product = as_dim(product * dim)
    return product


def leading(operand: object, graph: Graph) -> tuple[Value, tuple[Dim, ...]] | None:
    """(x, its leading axes) of a reshape that merges two or more leading axes of x into one."""
    if not graph.is_call(operand, *RESHAPES):
        return None
    node = graph.producer(operand)
    assert node is not None
    x, rows = node.inputs[0], node.output.type.shape
    if not isinstance(x, Value) or len(rows) < 2:
        return None
    for count in range(2, x.type.rank):
        if same_dim(_product(x.type.shape[:count]), rows[0]):
            return x, x.type.shape[:count]
    return None


def _find(node: Node, graph: Graph) -> Match | None:
    if isinstance(node.op, Aten) and any(not isinstance(a, (Slot, int, float)) for a in node.op.arguments):
        return None
    flattened = {n: leading(i, graph) for n, i in enumerate(node.inputs)}
    found = [f for f in flattened.values() if f is not None]
    if not found or any(f[1] != found[0][1] for f in found):
        return None
    rank = node.output.type.rank
    for number, operand in enumerate(node.inputs):
        carried = isinstance(node.op, Aten) or number == 0
        if operand is not None and carried and flattened[number] is None and operand.type.rank >= rank:
            return None
    sources = tuple(f and f[0] for f in flattened.values())
    captures = {"lead": found[0][1], "sources": sources, "node": node, "operands": node.inputs}
    return Match((node.output,), (node,), captures)


def _build(to: Replacement, match: Match) -> Operand:
    node, lead = match["node"], match["lead"]
    operands: list[Operand | None] = []
    for operand, source in zip(node.inputs, match["sources"]):
        if source is None:
            operands.append(operand)
            continue
        shape = [*lead, *operand.type.shape[1:]]
        same = source.type == operand.type.with_shape(shape)
        operands.append(source if same else to.emit(aten("reshape.default", Slot(0), shape), source))
    result = to.emit(node.op, *operands)
    return to.emit(aten("reshape.default", Slot(0), list(match.outputs[0].type.shape)), result)


def _sample(choose: Chooser) -> Module:
    b = Builder("forward")
    rows, inner, outer = (choose.integer(2, 3), choose.integer(2, 4)), choose.integer(2, 4), choose.integer(2, 4)
    x = b.input("x", TensorType(F32, (*rows, inner)))
    flat = b.emit(aten(choose.choice(["reshape.default", "view.default"]), Slot(0), [rows[0] * rows[1], inner]), x)
    weight = dense_param("weight", small_integers(choose, outer, inner))
    gain = dense_param("gain", small_integers(choose, inner))
    kinds: list[Any] = [
        lambda: b.emit(Linear(), flat, ParamRef("weight", weight.type), None),
        lambda: b.emit(RmsNorm(0.01), flat, ParamRef("gain", gain.type)),
        lambda: b.emit(aten("relu.default", Slot(0)), flat),
        lambda: b.emit(aten("add.Tensor", Slot(0), Slot(1)), flat, ParamRef("gain", gain.type)),
        lambda: b.emit(aten("mul.Tensor", Slot(0), Slot(1)), flat, flat),
    ]
    y = choose.choice(kinds)()
    return Module({"forward": b.finish([y], ["y"])}, {p.name: p for p in (weight, gain)})


RULES: tuple[Rule, ...] = (Rule("rows unflattened", frozenset(ROOTS), _find, _build, _sample),)
