"""Derivation of `prefill`, `extend` and `decode` from a causal `forward`.

Rows are left-aligned: row b brings length[b] real tokens, which stand at positions start[b] and following; what comes
after them in the row is ignored. Keys and values of each attention are appended to a state, so a later call continues
where an earlier one stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planish.ir.builder import Builder
from planish.ir.errors import UnsupportedError
from planish.ir.module import Function, Module, Node, Operand, State, StateRef, Value
from planish.ir.ops import Attention, CacheAppend, LastToken, Positions, Slot, aten
from planish.ir.types import Dim, TensorType, symbol
from planish.passes.sequence import SequenceAxes, sequence_axes

BATCH, TOKENS, CAPACITY = "B", "S", "C"
ROW = TensorType(torch.int64, (symbol(BATCH),))


@dataclass(frozen=True)
class Plan:
    """What all derived programs of one forward share."""

    forward: Function
    tokens: Value
    padding: Value | None
    axes: SequenceAxes
    live: tuple[Node, ...]
    caches: dict[Value, State]
    tail: tuple[Node, ...]
    """The nodes after the last mixing of positions that the output runs through one by one: they need the last token only."""


def plan(module: Module, function: str, tokens: str, padding: str) -> Plan:
    """Analyse a forward; raises UnsupportedError listing every operation that stands in the way."""
    forward = module.functions[function]
    inputs = {v.name: v for v in forward.inputs}
    if tokens not in inputs:
        raise UnsupportedError(
            f"function {function!r} has no input {tokens!r}, so no generation programs can be derived"
        )
    mask = inputs.pop(padding, None)
    ids = inputs.pop(tokens)
    if inputs or ids.type != TensorType(torch.int64, (symbol(BATCH), symbol(TOKENS))):
        raise UnsupportedError(
            f"generation programs need inputs {tokens!r} (i64[{BATCH}, {TOKENS}]) and optionally {padding!r}; "
            f"{function!r} takes {', '.join(repr(v) for v in forward.inputs)}"
        )
    live = forward.live_nodes()
    starting = {ids: 1} if mask is None else {ids: 1, mask: 1}
    axes = sequence_axes(
        Function(function, forward.inputs, live, forward.outputs, forward.output_names), starting, TOKENS
    )
    faults = [f"{n.op.name} at {n.source or 'an unnamed place'} {sentence}" for n, sentence in axes.unknown]
    faults += _padding_faults(live, mask)
    if len(forward.outputs) != 1 or not axes.carries(forward.outputs[0]):
        faults.append("the function must return one tensor along the sequence")
    if faults:
        raise UnsupportedError(f"no generation programs can be derived from {function!r}: " + "; ".join(faults))
    return Plan(forward, ids, mask, axes, live, _caches(live), _tail(forward, live, axes))


def _padding_faults(nodes: tuple[Node, ...], mask: Value | None) -> list[str]:
    """The padding mask may be read only where the derived programs know what stands for it."""
    faults = []
    for node in nodes:
        for number, operand in enumerate(node.inputs):
            if mask is not None and operand is mask:
                known = (isinstance(node.op, Positions) and number == 1) or (
                    isinstance(node.op, Attention) and number == 3
                )
                if not known:
                    faults.append(
                        f"{node.op.name} at {node.source or 'an unnamed place'} reads the padding mask itself"
                    )
    return faults


def _caches(nodes: tuple[Node, ...]) -> dict[Value, State]:
    """One state for each tensor that some attention reads as keys or values; two that read the same one share it."""
    caches: dict[Value, State] = {}
    layer = 0
    for node in nodes:
        if isinstance(node.op, Attention):
            for number, kind in ((1, "k"), (2, "v")):
                value = node.inputs[number]
                assert isinstance(value, Value)
                if value not in caches:
                    shape: tuple[Dim, ...] = (symbol(BATCH), symbol(CAPACITY), *value.type.shape[2:])
                    caches[value] = State(f"cache.{layer}.{kind}", TensorType(value.type.dtype, shape))
            layer += 1
    return caches


def _tail(function: Function, nodes: tuple[Node, ...], axes: SequenceAxes) -> tuple[Node, ...]:
    """The chain that ends in the output, each node reading exactly one value along the sequence, of axis 1."""
    producers = {v: n for n in nodes for v in n.outputs}
    tail: list[Node] = []
    value = function.outputs[0]
    while isinstance(value, Value) and value in producers:
        node = producers[value]
        carried = [i for i in node.inputs if isinstance(i, Value) and axes.carries(i)]
        single = len(carried) == 1 and len(node.outputs) == 1 and axes.axis[carried[0]] == axes.axis[value] == 1
        if not single or isinstance(node.op, (Attention, Positions)) or carried[0] not in producers:
            break
        tail.append(node)
        value = carried[0]
    return tuple(reversed(tail))


class _Derivation:
    """One program under construction."""

    def __init__(self, shared: Plan, name: str, *, resumes: bool, single: bool, last_only: bool) -> None:
        self.shared = shared
        self.last_only = last_only
        self.builder = Builder(name)
        length: Dim = 1 if single else symbol(TOKENS)
        self.replacements: dict[str, Dim] = {TOKENS: length}
        tokens = self.builder.input(shared.tokens.name, TensorType(torch.int64, (symbol(BATCH), length)))
        self.mapped: dict[Value, Operand] = {shared.tokens: tokens}
        self.appended: dict[Value, Value] = {}
        self.updates: dict[str, Operand] = {}
        self.start = self.builder.input("start", ROW) if resumes else None
        self.length = None if single else self.builder.input("length", ROW)
        anchor = self.start or self.length
        assert anchor is not None
        emit = self.builder.emit
        # Rows of a first call start at 0; a single token has length 1.
        self.first = self.start or emit(aten("zeros_like.default", Slot(0)), anchor)
        self.count = self.length or emit(aten("ones_like.default", Slot(0)), anchor)
        self.end = emit(aten("add.Tensor", Slot(0), Slot(1)), self.first, self.count)
        self.real = None if self.length is None else self._real_tokens(self.length)

    def _real_tokens(self, length: Value) -> Value:
        """bool [batch, tokens]: which tokens of each row are real."""
        index = self.builder.emit(aten("arange.default", symbol(TOKENS)))
        column = self.builder.emit(aten("unsqueeze.default", Slot(0), 1), length)
        return self.builder.emit(aten("lt.Tensor", Slot(0), Slot(1)), index, column)

    def run(self) -> Function:
        tail = set(self.shared.tail) if self.last_only else set()
        for node in self.shared.live:
            if node in tail:
                if node is self.shared.tail[0]:
                    self._narrow(node)
                self._copy(node, {**self.replacements, TOKENS: 1})
            elif isinstance(node.op, Positions):
                op = Positions(node.op.batch, self.replacements[TOKENS], node.op.padding_value)
                self.mapped[node.output] = self.builder.emit(op, self.start, self.real, source=node.source)
            elif isinstance(node.op, Attention):
                self._attend(node)
            else:
                self._copy(node, self.replacements)
        output = self._operand(self.shared.forward.outputs[0])
        if self.last_only and not tail:
            output = self.builder.emit(LastToken(), output, self.length)
        return self.builder.finish([output], self.shared.forward.output_names, self.updates)

    def _operand(self, old: Operand) -> Operand:
        return self.mapped[old] if isinstance(old, Value) else old

    def _narrow(self, node: Node) -> None:
        """From here on only the last real token of each row is needed."""
        for value in node.inputs:
            if isinstance(value, Value) and self.shared.axes.carries(value):
                self.mapped[value] = self.builder.emit(LastToken(), self._operand(value), self.length)

    def _copy(self, node: Node, replacements: dict[str, Dim]) -> None:
        operands = [None if i is None else self._operand(i) for i in node.inputs]
        names = [v.name for v in node.outputs]
        copy = self.builder.node(node.op.substitute(replacements), *operands, source=node.source, names=names)
        self.mapped.update(zip(node.outputs, copy.outputs))

    def _attend(self, node: Node) -> None:
        q, k, v, _, _, _, slopes, sinks, _ = node.inputs
        assert q is not None and isinstance(k, Value) and isinstance(v, Value)
        keys, values = self._append(k, node.source), self._append(v, node.source)
        extras = [None if i is None else self._operand(i) for i in (slopes, sinks)]
        operands = (self._operand(q), keys, values, None, self.start, self.end, *extras, None)
        self.mapped[node.output] = self.builder.emit(node.op, *operands, source=node.source, name=node.output.name)

    def _append(self, value: Value, source: str) -> Value:
        if value not in self.appended:
            state = self.shared.caches[value]
            ref = StateRef(state.name, state.type)
            cache = self.builder.emit(CacheAppend(), ref, self._operand(value), self.first, self.count, source=source)
            self.appended[value] = cache
            self.updates[state.name] = cache
        return self.appended[value]


def derive(module: Module, function: str, tokens: str, padding: str) -> Module:
    """The module with `prefill`, `extend` and `decode` added beside `function`; see the pass for their signatures."""
    shared = plan(module, function, tokens, padding)
    programs = [
        _Derivation(shared, "prefill", resumes=False, single=False, last_only=True).run(),
        _Derivation(shared, "extend", resumes=True, single=False, last_only=False).run(),
        _Derivation(shared, "decode", resumes=True, single=True, last_only=False).run(),
    ]
    states = {state.name: state for state in shared.caches.values()}
    functions = {**module.functions, **{p.name: p for p in programs}}
    return Module(functions, module.params, {**module.states, **states}, module.metadata)
