"""Derivation of `prefill`, `extend` and `decode` from a causal `forward`, and of `encode` from what it reads besides.

Rows are left-aligned: row b brings length[b] real tokens, which stand at positions start[b] and following; what comes
after them in the row is ignored. Keys and values of each attention are appended to a state, so a later call continues
where an earlier one stopped. Those of an encoder are put there once, by `encode`.
"""

from __future__ import annotations

from planish.ir.builder import Builder
from planish.ir.module import Function, Module, Node, Operand, StateRef, Value
from planish.ir.op import Op
from planish.ir.ops import Attention, CacheAppend, LastToken, Positions, Slot, aten
from planish.ir.types import Dim, TensorType, symbol
from planish.passes.derive.plan import BATCH, ROW, SOURCE, TOKENS, Inputs, Plan, plan
from planish.passes.sequence import counts, with_rows

SOURCE_LENGTH = "source_length"


def _real_tokens(builder: Builder, length: Value, tokens: str) -> Value:
    """bool [batch, tokens]: which tokens of each row are real."""
    index = builder.emit(aten("arange.default", symbol(tokens)))
    column = builder.emit(aten("unsqueeze.default", Slot(0), 1), length)
    return builder.emit(aten("lt.Tensor", Slot(0), Slot(1)), index, column)


class _Derivation:
    """One program under construction."""

    def __init__(self, shared: Plan, name: str, *, resumes: bool, single: bool, last_only: bool) -> None:
        self.shared = shared
        self.last_only = last_only
        self.builder = Builder(name)
        length: Dim = 1 if single else symbol(TOKENS)
        self.replacements: dict[str, Dim] = {TOKENS: length}
        tokens = self.builder.input(shared.tokens.name, TensorType(shared.tokens.type.dtype, (symbol(BATCH), length)))
        self.mapped: dict[Value, Operand] = {shared.tokens: tokens}
        self.appended: dict[Value, Value] = {}
        self.updates: dict[str, Operand] = {}
        self.start = self.builder.input("start", ROW) if resumes else None
        self.length = None if single else self.builder.input("length", ROW)
        self.source_length = None if shared.source is None else self.builder.input(SOURCE_LENGTH, ROW)
        anchor = self.start or self.length
        assert anchor is not None
        emit = self.builder.emit
        # Rows of a first call start at 0; a single token has length 1.
        self.first = self.start or emit(aten("zeros_like.default", Slot(0)), anchor)
        self.count = self.length or emit(aten("ones_like.default", Slot(0)), anchor)
        self.end = emit(aten("add.Tensor", Slot(0), Slot(1)), self.first, self.count)
        self.real = None if self.length is None else _real_tokens(self.builder, self.length, TOKENS)

    def run(self) -> Function:
        tail = set(self.shared.tail) if self.last_only else set()
        for node in self.shared.nodes:
            if node in tail:
                if node is self.shared.tail[0]:
                    self._narrow(node)
                self._copy(node, node.op, {**self.replacements, TOKENS: 1})
            elif isinstance(node.op, Positions):
                self._count(node, node.op.batch, node.op.padding_value)
            elif counts(node, TOKENS):
                self._count(node, symbol(BATCH), 0)
            elif isinstance(node.op, Attention):
                self._attend(node)
            else:
                gaining = any(self.shared.axes.without_rows(i) for i in node.inputs)
                op = with_rows(node) if gaining else node.op
                assert op is not None
                self._copy(node, op, self.replacements)
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

    def _count(self, node: Node, batch: Dim, padding_value: int) -> None:
        """The positions of the tokens of each row."""
        op = Positions(batch, self.replacements[TOKENS], padding_value)
        self.mapped[node.output] = self.builder.emit(op, self.start, self.real, source=node.source)

    def _copy(self, node: Node, op: Op, replacements: dict[str, Dim]) -> None:
        operands = [None if i is None else self._operand(i) for i in node.inputs]
        names = [v.name for v in node.outputs]
        copy = self.builder.node(op.substitute(replacements), *operands, source=node.source, names=names)
        self.mapped.update(zip(node.outputs, copy.outputs))

    def _attend(self, node: Node) -> None:
        q, k, v, _, _, _, slopes, sinks, _ = node.inputs
        assert q is not None and isinstance(k, Value) and isinstance(v, Value)
        extras = [None if i is None else self._operand(i) for i in (slopes, sinks)]
        if k in self.shared.encoded:
            keys, values = self._state(k), self._state(v)
            operands = (self._operand(q), keys, values, None, None, self.source_length, *extras, None)
        else:
            keys, values = self._append(k, node.source), self._append(v, node.source)
            operands = (self._operand(q), keys, values, None, self.start, self.end, *extras, None)
        self.mapped[node.output] = self.builder.emit(node.op, *operands, source=node.source, name=node.output.name)

    def _state(self, value: Value) -> Operand:
        state = self.shared.caches[value]
        return StateRef(state.name, state.type)

    def _append(self, value: Value, source: str) -> Operand:
        if value not in self.appended:
            name = self.shared.caches[value].name
            new = (self._state(value), self._operand(value), self.first, self.count)
            self.appended[value] = self.updates[name] = self.builder.emit(CacheAppend(), *new, source=source)
        return self.appended[value]


def _encode(shared: Plan) -> Function:
    """`encode(source [B, T], length [B])`: keys and values of what the decoder attends to, into their states."""
    assert shared.source is not None and shared.source_padding is not None
    builder = Builder("encode")
    source = builder.input(shared.source.name, shared.source.type)
    length = builder.input("length", ROW)
    real = _real_tokens(builder, length, SOURCE)
    mapped: dict[Value, Operand] = {shared.source: source, shared.source_padding: real}
    wanted = {v: s for v, s in shared.caches.items() if v in shared.encoded}
    for node in Function(
        "encode", shared.forward.inputs, shared.forward.nodes, tuple(wanted), ("",) * len(wanted)
    ).live_nodes():
        operands = [mapped[i] if isinstance(i, Value) else i for i in node.inputs]
        copy = builder.node(node.op, *operands, source=node.source, names=[v.name for v in node.outputs])
        mapped.update(zip(node.outputs, copy.outputs))
    first = builder.emit(aten("zeros_like.default", Slot(0)), length)
    updates = {
        state.name: builder.emit(CacheAppend(), StateRef(state.name, state.type), mapped[value], first, length)
        for value, state in wanted.items()
    }
    return builder.finish([], [], updates)


def derive(module: Module, names: Inputs) -> Module:
    """The module with `prefill`, `extend` and `decode` added beside the forward, and `encode` where it reads a source;
    see the pass for their signatures."""
    shared = plan(module, names)
    programs = [
        _Derivation(shared, "prefill", resumes=False, single=False, last_only=True).run(),
        _Derivation(shared, "extend", resumes=True, single=False, last_only=False).run(),
        _Derivation(shared, "decode", resumes=True, single=True, last_only=False).run(),
    ]
    if shared.source is not None:
        programs.insert(0, _encode(shared))
    states = {state.name: state for state in shared.caches.values()}
    functions = {**module.functions, **{p.name: p for p in programs}}
    return Module(functions, module.params, {**module.states, **states}, module.metadata)
