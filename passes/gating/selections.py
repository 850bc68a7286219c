"""Selections whose condition is known, as parts of both tensors one after the other."""

from __future__ import annotations

from typing import Any

import torch

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand, ParamRef, Value
from planish.ir.op import Chooser
from planish.ir.ops import aten
from planish.ir.ops.aten import Slot
from planish.ir.params import Param, dense_param
from planish.ir.types import TensorType, same_dim
from planish.passes.graph import Graph
from planish.passes.rewrite import Found, Match, Replacement, Rule


def _along(constant: TensorType, whole: TensorType) -> int | None:
    """The one axis of `whole` along which a constant that is broadcast changes; None for several or none."""
    offset = whole.rank - constant.rank
    axes = [axis + offset for axis, dim in enumerate(constant.shape) if not same_dim(dim, 1)]
    return axes[0] if len(axes) == 1 and same_dim(constant.shape[axes[0] - offset], whole.shape[axes[0]]) else None


def _selection(node: Node, graph: Graph) -> Found:
    arguments = graph.arguments(node)
    gate, ours, theirs = arguments["condition"], arguments["self"], arguments["other"]
    whole = node.output.type
    if not isinstance(ours, Value) or not isinstance(theirs, Value) or not whole.dtype.is_floating_point:
        return None
    if not isinstance(gate, ParamRef):
        return "its condition depends on the inputs"
    chosen = graph.module.params[gate.name].value()
    if not bool(chosen.all()) and bool(chosen.any()) and _along(gate.type, whole) is None:
        return f"its condition {gate.type} changes along several axes of {whole}"
    return _match(node, [node], ours, theirs, chosen)


def _match(node: Node, nodes: list[Node], ours: Value, theirs: Value, chosen: torch.Tensor) -> Found:
    whole = node.output.type
    needed = [v for v, wanted in ((ours, chosen.any()), (theirs, (~chosen).any())) if bool(wanted)]
    if any(value.type != whole for value in needed):
        return f"one side is repeated to {whole}"
    return Match((node.output,), tuple(nodes), {"ours": ours, "theirs": theirs, "chosen": chosen})


def _weighed(node: Node, graph: Graph) -> Found:
    """a * gate + b * other, where each number is 0 or 1, and exactly one of both is 1."""
    arguments = graph.arguments(node)
    if arguments["alpha"] != 1:
        return None
    sides, factors, nodes = list[Value](), list[ParamRef](), list[Node]()
    for operand in (arguments["self"], arguments["other"]):
        product = graph.producer(operand)
        if product is None or not graph.is_call(operand, "mul.Tensor"):
            return None
        read = product.inputs
        constants = [o for o in read if isinstance(o, ParamRef)]
        values = [o for o in read if isinstance(o, Value)]
        if len(constants) != 1 or len(values) != 1:
            return None
        sides, factors, nodes = [*sides, *values], [*factors, *constants], [*nodes, product]
    whole = node.output.type
    if factors[0].type != factors[1].type or _along(factors[0].type, whole) is None:
        return None
    one, other = (graph.module.params[f.name].value() for f in factors)
    if not bool(((one == 1) & (other == 0) | (one == 0) & (other == 1)).all()):
        return None
    return _match(node, [*nodes, node], sides[0], sides[1], one == 1)


def _partition(to: Replacement, match: Match) -> Operand:
    """Both parts, one after the other, and then in the order of the channels."""
    ours, theirs, chosen = match["ours"], match["theirs"], match["chosen"].flatten()
    if bool(chosen.all()):
        return to.operand(ours)
    if not bool(chosen.any()):
        return to.operand(theirs)
    axis = _axis_of(match["chosen"], match.outputs[0].type)
    parts = [chosen.nonzero().flatten(), (~chosen).nonzero().flatten()]
    picked = [_pick(to, side, axis, part) for side, part in zip((ours, theirs), parts)]
    joined = to.emit(aten("cat.default", (Slot(0), Slot(1)), axis), *picked)
    return _pick(to, joined, axis, torch.cat(parts).argsort())


def _axis_of(chosen: torch.Tensor, whole: TensorType) -> int:
    offset = whole.rank - chosen.ndim
    return next(axis + offset for axis, size in enumerate(chosen.shape) if size != 1)


def _pick(to: Replacement, value: Value, axis: int, indices: torch.Tensor) -> Value:
    index = to.param(indices, "picked")
    return to.emit(aten("index_select.default", Slot(0), axis, Slot(1)), value, index)


def _everything(node: Node, graph: Graph) -> Found:
    """A pick of all indices in their order."""
    x, index = node.inputs
    if not isinstance(index, ParamRef) or not isinstance(x, Value) or x.type != node.output.type:
        return None
    order = graph.module.params[index.name].value()
    return Match((node.output,), (node,), {"x": x}) if torch.equal(order, torch.arange(len(order))) else None


def _drawn(choose: Chooser, build: Any) -> Module:
    channels = choose.integer(2, 5)
    shape = (choose.integer(1, 3), channels, choose.integer(1, 3))
    builder = Builder("forward")
    a, b = (builder.input(name, TensorType(torch.float32, shape)) for name in "ab")
    gate = torch.tensor([choose.boolean() for _ in range(channels)]).reshape(channels, 1)
    params: dict[str, Param] = {}

    def param(name: str, value: torch.Tensor) -> ParamRef:
        params[name] = dense_param(name, value)
        return ParamRef(name, params[name].type)

    return Module({"forward": builder.finish([build(builder, param, gate, a, b)], ["y"])}, params)


def _sample_selection(choose: Chooser) -> Module:
    return _drawn(
        choose,
        lambda builder, param, gate, a, b: builder.emit(
            aten("where.self", Slot(0), Slot(1), Slot(2)), param("gate", gate), a, b
        ),
    )


def _sample_weighed(choose: Chooser) -> Module:
    def build(builder: Builder, param: Any, gate: torch.Tensor, a: Value, b: Value) -> Value:
        product = aten("mul.Tensor", Slot(0), Slot(1))
        one = builder.emit(product, a, param("gate", gate.float()))
        other = builder.emit(product, param("others", 1 - gate.float()), b)
        return builder.emit(aten("add.Tensor", Slot(0), Slot(1)), one, other)

    return _drawn(choose, build)


def _sample_everything(choose: Chooser) -> Module:
    return _drawn(
        choose,
        lambda builder, param, gate, a, b: builder.emit(
            aten("index_select.default", Slot(0), 1, Slot(1)), a, param("all", torch.arange(len(gate)))
        ),
    )


SELECTIONS = (
    Rule("selection", frozenset({"where.self"}), _selection, _partition, _sample_selection, keeps_shared=True),
    Rule("weighed selection", frozenset({"add.Tensor"}), _weighed, _partition, _sample_weighed, keeps_shared=True),
)
EVERYTHING = Rule(
    "pick of everything",
    frozenset({"index_select.default"}),
    _everything,
    lambda to, match: to.operand(match["x"]),
    _sample_everything,
)
