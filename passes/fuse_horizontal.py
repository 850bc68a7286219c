"""Linear maps of one input joined into one: queries with keys and values, gate with up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense, Grouped
from planish.ir.module import Function, Module, Node, Operand, ParamRef, Value
from planish.ir.ops import GatedActivation, Linear, QuantizedLinear, Slot, aten
from planish.ir.params import Computed, Param, Storage
from planish.ir.types import TensorType
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult

# Encodings whose storage of stacked rows is the stack of the rows' storage.
ROWWISE = (Dense, Grouped)


class FuseHorizontal(Pass):
    """`linear(x, a), linear(x, b)` --> `split(linear(x, [a; b]))`, for linear maps that read the same input.

    Joined are maps that follow each other with no use of their results in between, whose weights have one encoding and
    no other reader, and that all have a bias or all have none. A gate and an up projection that only their gated
    activation reads need no split: the activation reads the joined result.
    """

    name: ClassVar[str] = "fuse-horizontal"

    def apply(self, module: Module, context: Context) -> PassResult:
        plan = _plan(module)
        joined: dict[tuple[str, ...], Param] = {}
        correspondence: dict[str, Correspondence] = {}
        result, matches = module, 0
        for function in module.functions.values():
            rewritten, count, correspondence[function.name] = _rewrite(function, plan, joined, module)
            matches += count
            result = result.with_function(rewritten) if count else result
        if not matches:
            return PassResult(module, 0)
        result = result.with_params(joined.values())
        used = {r.name for f in result.functions.values() for r in f.references() if isinstance(r, ParamRef)}
        dropped = {name for group in joined for name in group} - used
        params = {name: p for name, p in result.params.items() if name not in dropped}
        return PassResult(Module(result.functions, params, result.states, result.metadata), matches, correspondence)


Group = tuple[Node, ...]


def _parts(node: Node) -> tuple[tuple[Operand | None, ...], Operand | None, Operand | None] | None:
    """(the input operands, weight, bias) of a linear map."""
    if isinstance(node.op, Linear):
        return node.inputs[:1], node.inputs[1], node.inputs[2]
    if isinstance(node.op, QuantizedLinear):
        return node.inputs[:2], node.inputs[2], node.inputs[3]
    return None


def _groups(function: Function, module: Module) -> list[Group]:
    """Maximal groups of linear maps on the same input that could be joined, looking at one function only."""
    by_key: dict[object, list[Node]] = {}
    for node in function.nodes:
        parts = _parts(node)
        if (
            parts is None
            or not isinstance(parts[1], ParamRef)
            or not (parts[2] is None or isinstance(parts[2], ParamRef))
        ):
            continue
        encoding = module.params[parts[1].name].encoding
        if isinstance(encoding, ROWWISE):
            by_key.setdefault((parts[0], encoding, parts[2] is None), []).append(node)
    return [tuple(nodes) for nodes in by_key.values() if len(nodes) > 1]


def _names(group: Group) -> tuple[str, ...]:
    names = []
    for node in group:
        parts = _parts(node)
        assert parts is not None and isinstance(parts[1], ParamRef)
        names.append(parts[1].name)
    return tuple(names)


def _plan(module: Module) -> set[tuple[str, ...]]:
    """Groups, as names of weights, that every function reading any of these weights reads in the same way.

    Without that, a weight would have to be stored twice.
    """
    found = {f.name: {_names(g) for g in _groups(f, module)} for f in module.functions.values()}
    candidates = {names for groups in found.values() for names in groups if len(set(names)) == len(names)}
    accepted = set()
    for names in candidates:
        reads = [
            [r.name for r in function.references() if isinstance(r, ParamRef) and r.name in names]
            for function in module.functions.values()
        ]
        if all(not r or (sorted(r) == sorted(names)) for r in reads) and all(
            names in found[f.name] for f, r in zip(module.functions.values(), reads) if r
        ):
            accepted.add(names)
    return accepted


@dataclass(frozen=True)
class _Stacked:
    """The storage of several parameters stacked along their first axis."""

    parts: tuple[Param, ...]

    def __call__(self) -> Storage:
        storages = [p.storage() for p in self.parts]
        return {field: torch.cat([s[field] for s in storages]) for field in storages[0]}


def _stack(module: Module, names: Sequence[str]) -> Param:
    parts = tuple(module.params[n] for n in names)
    first = parts[0].type
    rows = sum(int(p.type.shape[0]) for p in parts)
    return Param(
        "+".join(names), TensorType(first.dtype, (rows, *first.shape[1:])), parts[0].encoding, Computed(_Stacked(parts))
    )


def _rewrite(
    function: Function, plan: set[tuple[str, ...]], joined: dict[tuple[str, ...], Param], module: Module
) -> tuple[Function, int, Correspondence]:
    groups = [g for g in _groups(function, module) if _names(g) in plan]
    leader = {node: group for group in groups for node in group}
    copy, users, count = Rewriter(function), function.users(), 0
    done: dict[Group, Value] = {}
    gated = {g: _gate(g, users) for g in groups}
    skipped = {node: group for group, node in gated.items() if node is not None}
    for node in function.nodes:
        group = leader.get(node) or skipped.get(node)
        if group is None:
            copy.keep(node)
        elif node in leader and group not in done:
            done[group] = _join(copy, group, joined, module, split=gated[group] is None)
            count += 1
        elif node in skipped:
            assert isinstance(node.op, GatedActivation)
            copy.replace(node.output, copy.emit(node.op, done[group], None, source=node.source))
    return (copy.finish_like(), count, copy.correspondence) if count else (function, 0, {})


def _gate(group: Group, users: dict[Value, list[Node]]) -> Node | None:
    """The gated activation that alone reads a group of exactly its gate and its up projection, in this order."""
    if len(group) != 2:
        return None
    readers = [users.get(n.output, []) for n in group]
    if any(len(r) != 1 for r in readers) or readers[0] != readers[1]:
        return None
    node = readers[0][0]
    return node if isinstance(node.op, GatedActivation) and node.inputs == (group[0].output, group[1].output) else None


def _join(copy: Rewriter, group: Group, joined: dict[tuple[str, ...], Param], module: Module, *, split: bool) -> Value:
    names = _names(group)
    weight = joined.setdefault(names, _stack(module, names))
    first = _parts(group[0])
    assert first is not None
    inputs = [None if o is None else copy.operand(o) for o in first[0]]
    bias: Operand | None = None
    if first[2] is not None:
        biases = tuple(p[2].name for n in group if (p := _parts(n)) is not None and isinstance(p[2], ParamRef))
        stacked = joined.setdefault(biases, _stack(module, biases))
        bias = ParamRef(stacked.name, stacked.type)
    result = copy.emit(group[0].op, *inputs, ParamRef(weight.name, weight.type), bias, source=group[0].source)
    if split:
        sizes = [n.output.type.shape[-1] for n in group]
        pieces = copy.node(aten("split_with_sizes.default", Slot(0), sizes, -1), result, source=group[0].source)
        for node, piece in zip(group, pieces.outputs):
            copy.replace(node.output, piece)
    return result
