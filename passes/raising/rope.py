"""Rotary position embeddings spelt out --> `rope`.

Recognised is x * cos + rotate_half(x) * sin, where cos and sin are tables computed from positions and frequencies, on x
[batch, heads, length, size] or [batch, length, heads, size]; then the rotation of a leading part of each head joined with
the rest that passes through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from planish.ir.builder import Builder
from planish.ir.module import Module, Node, Operand, ParamRef, Value
from planish.ir.op import Chooser
from planish.ir.ops import Rope, Slot, aten
from planish.ir.params import dense_param
from planish.ir.types import TensorType
from planish.passes.graph import Graph
from planish.passes.rewrite import Match, Replacement, Rule

CASTS = ("_to_copy.default", "to.dtype", "clone.default", "alias.default", "contiguous.default")


@dataclass(frozen=True)
class Table:
    """A table of cosines or sines: positions i64 [batch, length] times inv_freq, both halves of the last axis alike."""

    function: str
    positions: Value
    inv_freq: ParamRef
    scale: float
    heads_axis: int


class Reader:
    """Walks from a value towards what it is computed from, collecting the nodes it passes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []

    def call(self, operand: object, *overloads: str) -> dict[str, Any] | None:
        """The arguments of the ATen call that computes an operand, if it is one of these."""
        node = self.graph.producer(operand)
        if node is None or not self.graph.is_call(operand, *overloads):
            return None
        self.nodes.append(node)
        return self.graph.arguments(node)

    def strip(self, operand: object, *overloads: str) -> object:
        """The operand behind calls that keep its elements."""
        while (found := self.call(operand, *overloads)) is not None:
            operand = found["self"]
        return operand


def _table(reader: Reader, operand: object) -> Table | None:
    operand = reader.strip(operand, *CASTS)
    spread = reader.call(operand, "unsqueeze.default")
    if spread is None or spread["dim"] not in (1, 2):
        return None
    operand, scale = reader.strip(spread["self"], *CASTS), 1.0
    scaled = reader.call(operand, "mul.Tensor", "mul.Scalar")
    if scaled is not None:
        if not isinstance(scaled["other"], (int, float)):
            return None
        operand, scale = scaled["self"], float(scaled["other"])
    for function in ("cos", "sin"):
        taken = reader.call(operand, f"{function}.default")
        if taken is not None:
            angles = _angles(reader, taken["self"])
            return None if angles is None else Table(function, *angles, scale, spread["dim"])
    return None


def _angles(reader: Reader, operand: object) -> tuple[Value, ParamRef] | None:
    """(positions, inv_freq) of cat([f, f]) with f = positions[:, :, None] * inv_freq, as a product or a matmul."""
    joined = reader.call(operand, "cat.default")
    if joined is None or len(joined["tensors"]) != 2 or joined["tensors"][0] is not joined["tensors"][1]:
        return None
    product = reader.strip(joined["tensors"][0], *CASTS)
    turned = reader.call(product, "transpose.int")
    if turned is not None:
        product = turned["self"]
    found = reader.call(product, *(("matmul.default", "bmm.default") if turned else ("mul.Tensor",)))
    if found is None:
        return None
    sides = [
        reader.strip(s, *CASTS, "unsqueeze.default", "expand.default", "view.default") for s in list(found.values())[:2]
    ]
    frequencies = [s for s in sides if isinstance(s, ParamRef) and s.type.dtype.is_floating_point]
    positions = [s for s in sides if isinstance(s, Value) and s.type.dtype == torch.int64 and s.type.rank == 2]
    if len(frequencies) != 1 or len(positions) != 1 or frequencies[0].type.rank != 1:
        return None
    return positions[0], frequencies[0]


def _rotate_half(reader: Reader, operand: object) -> object | None:
    """x of cat([-x[..., n/2:], x[..., :n/2]], -1)."""
    joined = reader.call(operand, "cat.default")
    if joined is None or len(joined["tensors"]) != 2:
        return None
    second, first = joined["tensors"]
    negated = reader.call(second, "neg.default")
    back = None if negated is None else reader.call(negated["self"], "slice.Tensor")
    front = reader.call(first, "slice.Tensor")
    if back is None or front is None or back["self"] is not front["self"]:
        return None
    x = front["self"]
    size, last = x.type.shape[-1], x.type.rank - 1
    axes = all(a % x.type.rank == last for a in (back["dim"], front["dim"])) and joined["dim"] % x.type.rank == last
    halves = isinstance(size, int) and (front["start"] or 0) == 0 and front["end"] == back["start"] == size // 2
    whole = back["end"] is None or (isinstance(back["end"], int) and back["end"] >= size)
    return x if axes and halves and whole and size % 2 == 0 else None


def _find(node: Node, graph: Graph) -> Match | str | None:
    reader = Reader(graph)
    added = graph.arguments(node)
    if added.get("alpha", 1) != 1:
        return None
    for plain, turned in ((added["self"], added["other"]), (added["other"], added["self"])):
        found = _rotation(reader, plain, turned)
        if found is not None:
            x, table = found
            if x.type.rank != 4 or 2 * table.inv_freq.type.shape[0] != x.type.shape[-1]:
                return f"the table of {table.inv_freq.type} does not rotate heads of {x.type}"
            nodes = tuple(sorted({node, *reader.nodes}, key=graph.position.__getitem__))
            return Match((node.output,), nodes, {"x": x, "table": table, "positions": table.positions})
        reader.nodes.clear()
    return None


def _rotation(reader: Reader, plain: object, turned: object) -> tuple[Any, Table] | None:
    a, b = reader.call(plain, "mul.Tensor"), reader.call(turned, "mul.Tensor")
    if a is None or b is None:
        return None
    for x, cos_side in ((a["self"], a["other"]), (a["other"], a["self"])):
        for half, sin_side in ((b["self"], b["other"]), (b["other"], b["self"])):
            mark = len(reader.nodes)
            if _rotate_half(reader, half) is x:
                cos, sin = _table(reader, cos_side), _table(reader, sin_side)
                same = cos is not None and sin is not None and (cos.function, sin.function) == ("cos", "sin")
                if same and cos is not None and cos == Table("cos", *_fields(sin)):
                    return x, cos
            del reader.nodes[mark:]
    return None


def _fields(table: Table | None) -> tuple[Any, ...]:
    assert table is not None
    return table.positions, table.inv_freq, table.scale, table.heads_axis


def _build(to: Replacement, match: Match) -> Operand:
    table, x = match["table"], match["x"]
    if table.heads_axis == 2:
        return to.emit(Rope("half", table.scale), x, table.positions, table.inv_freq)
    turned = to.emit(aten("transpose.int", Slot(0), 1, 2), x)
    rotated = to.emit(Rope("half", table.scale), turned, table.positions, table.inv_freq)
    return to.emit(aten("transpose.int", Slot(0), 1, 2), rotated)


def _sample(choose: Chooser) -> Module:
    """x * cos + rotate_half(x) * sin, as models write it."""
    batch, length, heads, pairs = choose.integer(1, 3), choose.integer(2, 5), choose.integer(2, 3), choose.integer(1, 3)
    axis = choose.choice([1, 2])
    b = Builder("forward")
    shape = (batch, heads, length, 2 * pairs) if axis == 1 else (batch, length, heads, 2 * pairs)
    x = b.input("x", TensorType(torch.float32, shape))
    positions = b.input("positions", TensorType(torch.int64, (batch, length)))
    inv_freq = dense_param("inv_freq", 10.0 ** -torch.arange(pairs).to(torch.float32))
    ref = ParamRef("inv_freq", inv_freq.type)
    wide = b.emit(
        aten("_to_copy.default", Slot(0), dtype=torch.float32), b.emit(aten("unsqueeze.default", Slot(0), 2), positions)
    )
    half = b.emit(aten("mul.Tensor", Slot(0), Slot(1)), wide, ref)
    angles = b.emit(aten("cat.default", [Slot(0), Slot(0)], -1), half)
    scale = choose.choice([1.0, 0.5])
    tables = []
    for function in ("cos", "sin"):
        table = b.emit(aten("mul.Tensor", Slot(0), scale), b.emit(aten(f"{function}.default", Slot(0)), angles))
        tables.append(b.emit(aten("unsqueeze.default", Slot(0), axis), table))
    front = b.emit(aten("slice.Tensor", Slot(0), 3, 0, pairs), x)
    back = b.emit(aten("neg.default", Slot(0)), b.emit(aten("slice.Tensor", Slot(0), 3, pairs, 2**63 - 1), x))
    turned = b.emit(aten("cat.default", [Slot(0), Slot(1)], -1), back, front)
    parts = [b.emit(aten("mul.Tensor", Slot(0), Slot(1)), t, c) for t, c in zip((x, turned), tables)]
    y = b.emit(aten("add.Tensor", Slot(0), Slot(1)), *parts)
    return Module({"forward": b.finish([y], ["y"])}, {"inv_freq": inv_freq})


# The tables are read by every layer, so the nodes that compute them stay until nothing reads them.
ROPE = Rule("rope", frozenset({"add.Tensor"}), _find, _build, _sample, keeps_shared=True)


def _behind_transpose(reader: Reader, operand: object) -> tuple[object, bool]:
    turned = reader.call(operand, "transpose.int")
    if turned is not None and {turned["dim0"], turned["dim1"]} == {1, 2}:
        return turned["self"], True
    return operand, False


def _find_partial(node: Node, graph: Graph) -> Match | str | None:
    reader = Reader(graph)
    joined = graph.arguments(node)
    if len(joined["tensors"]) != 2 or joined["dim"] not in (-1, 3):  # type: ignore[arg-type]
        return None
    inner, turned = _behind_transpose(reader, joined["tensors"][0])  # type: ignore[index]
    rope = graph.producer(inner)
    if rope is None or not isinstance(rope.op, Rope):
        return None
    leading, turned_back = _behind_transpose(reader, rope.inputs[0])
    front, rest = reader.call(leading, "slice.Tensor"), reader.call(joined["tensors"][1], "slice.Tensor")  # type: ignore[index]
    if turned != turned_back or front is None or rest is None or front["self"] is not rest["self"]:
        return None
    x = front["self"]
    size = x.type.shape[-1]
    if (
        not all(s["dim"] in (-1, 3) for s in (front, rest))
        or front["end"] != rest["start"]
        or (front["start"] or 0) != 0
    ):
        return None
    if rest["end"] is not None and not (isinstance(rest["end"], int) and rest["end"] >= size):
        return "the part that passes through is cut short"
    captures = {"x": x, "positions": rope.inputs[1], "inv_freq": rope.inputs[2], "op": rope.op, "turned": turned}
    nodes = tuple(sorted({node, rope, *reader.nodes}, key=graph.position.__getitem__))
    return Match((node.output,), nodes, captures)


def _build_partial(to: Replacement, match: Match) -> Operand:
    x = match["x"]
    if not match["turned"]:
        return to.emit(match["op"], x, match["positions"], match["inv_freq"])
    turned = to.emit(aten("transpose.int", Slot(0), 1, 2), x)
    rotated = to.emit(match["op"], turned, match["positions"], match["inv_freq"])
    return to.emit(aten("transpose.int", Slot(0), 1, 2), rotated)


def _sample_partial(choose: Chooser) -> Module:
    pairs, rest = choose.integer(1, 3), choose.integer(1, 3)
    b = Builder("forward")
    turned = choose.boolean()
    batch, length, heads = choose.integer(1, 3), choose.integer(2, 4), choose.integer(2, 3)
    shape = (batch, heads, length, 2 * pairs + rest) if turned else (batch, length, heads, 2 * pairs + rest)
    x = b.input("x", TensorType(torch.float32, shape))
    positions = b.input("positions", TensorType(torch.int64, (batch, length)))
    inv_freq = dense_param("inv_freq", 10.0 ** -torch.arange(pairs).to(torch.float32))
    value = b.emit(aten("slice.Tensor", Slot(0), 3, 0, 2 * pairs), x)
    if turned:
        value = b.emit(aten("transpose.int", Slot(0), 1, 2), value)
    value = b.emit(Rope(), value, positions, ParamRef("inv_freq", inv_freq.type))
    if turned:
        value = b.emit(aten("transpose.int", Slot(0), 1, 2), value)
    passed = b.emit(aten("slice.Tensor", Slot(0), 3, 2 * pairs, 2**63 - 1), x)
    y = b.emit(aten("cat.default", [Slot(0), Slot(1)], -1), value, passed)
    return Module({"forward": b.finish([y], ["y"])}, {"inv_freq": inv_freq})


PARTIAL = Rule("partial rope", frozenset({"cat.default"}), _find_partial, _build_partial, _sample_partial)

RULES: tuple[Rule, ...] = (ROPE, PARTIAL)
