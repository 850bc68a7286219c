"""What a forward must be like for generation programs to be derived from it, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from planish.ir.errors import UnsupportedError
from planish.ir.module import Function, Module, Node, State, Value
from planish.ir.ops import Attention, Positions
from planish.ir.types import Dim, TensorType, symbol
from planish.passes.sequence import SequenceAxes, sequence_axes

BATCH, TOKENS, CAPACITY, SOURCE = "B", "S", "C", "T"
ROW = TensorType(torch.int64, (symbol(BATCH),))
K, V, PADDING = 1, 2, 3


@dataclass(frozen=True)
class Inputs:
    """The names of a forward's inputs by what they are; see the pass `derive-programs`."""

    function: str = "forward"
    tokens: str = "input_ids"
    padding: str = "attention_mask"
    source: str | None = None
    source_padding: str | None = None


@dataclass(frozen=True)
class Plan:
    """What all derived programs of one forward share.

    Attributes:
        forward: the traced function.
        tokens, padding, source, source_padding: its inputs; None for those it does not have.
        axes: the sequence axes of everything that depends on the tokens.
        nodes: the live nodes that the result needs once the encoder's are done.
        encoder: the live nodes that depend on the source and not on the tokens.
        caches: the state of every tensor that attention reads as keys, values or both.
        tail: the nodes after the last mixing of positions that the output runs through one by one: they need the last
            token only.
    """

    forward: Function
    tokens: Value
    padding: Value | None
    source: Value | None
    source_padding: Value | None
    axes: SequenceAxes
    nodes: tuple[Node, ...]
    encoder: tuple[Node, ...]
    caches: dict[Value, State]
    tail: tuple[Node, ...]

    @property
    def encoded(self) -> frozenset[Value]:
        """What the encoder computes."""
        return frozenset(v for n in self.encoder for v in n.outputs)


def plan(module: Module, names: Inputs) -> Plan:
    """Analyse a forward; raises UnsupportedError listing every operation that stands in the way."""
    forward = module.functions[names.function]
    tokens, padding, source, source_padding = _inputs(forward, names)
    live = forward.live_nodes()
    encoder = _encoder(live, tokens, source)
    nodes = _beyond(forward, live, set(encoder))
    starting = {v: 1 for v in (tokens, padding) if v is not None}
    decoder = Function(names.function, forward.inputs, nodes, forward.outputs, forward.output_names)
    axes = sequence_axes(decoder, starting, TOKENS)
    faults = [_sentence(n, sentence) for n, sentence in axes.unknown]
    faults += _padding_faults(nodes, padding)
    faults += _crossing_faults(nodes, encoder, source, source_padding)
    if len(forward.outputs) != 1 or not axes.carries(forward.outputs[0]):
        faults.append("the function must return one tensor along the sequence")
    if faults:
        raise UnsupportedError(
            f"no generation programs can be derived from {names.function!r}: " + "; ".join(dict.fromkeys(faults))
        )
    caches, tail = _caches(nodes), _tail(forward, nodes, axes)
    return Plan(forward, tokens, padding, source, source_padding, axes, nodes, encoder, caches, tail)


def _inputs(forward: Function, names: Inputs) -> tuple[Value, Value | None, Value | None, Value | None]:
    """(tokens, padding, source, source padding) of a forward that takes these and nothing else."""
    given = {v.name: v for v in forward.inputs}
    if names.tokens not in given:
        raise UnsupportedError(
            f"function {names.function!r} has no input {names.tokens!r}, so no generation programs can be derived"
        )
    tokens, padding = given.pop(names.tokens), given.pop(names.padding, None)
    expected = {tokens: TensorType(torch.int64, (symbol(BATCH), symbol(TOKENS)))}
    source = source_padding = None
    if names.source is not None:
        source, source_padding = given.pop(names.source, None), given.pop(str(names.source_padding), None)
        if source is None or source_padding is None:
            missing = names.source if source is None else names.source_padding
            raise UnsupportedError(
                f"function {names.function!r} has no input {missing!r}, so no program `encode` can be derived"
            )
        expected[source] = TensorType(torch.int64, (symbol(BATCH), symbol(SOURCE)))
        expected[source_padding] = TensorType(torch.bool, (symbol(BATCH), symbol(SOURCE)))
    if given or any(v.type != kind for v, kind in expected.items()):
        wanted = ", ".join(f"{v.name!r} ({kind})" for v, kind in expected.items())
        raise UnsupportedError(
            f"generation programs need inputs {wanted} and optionally {names.padding!r}; "
            f"{names.function!r} takes {', '.join(repr(v) for v in forward.inputs)}"
        )
    return tokens, padding, source, source_padding


def _encoder(live: tuple[Node, ...], tokens: Value, source: Value | None) -> tuple[Node, ...]:
    """The nodes that depend on the source and not on the tokens."""
    if source is None:
        return ()
    behind: dict[Value, set[Value]] = {tokens: {tokens}, source: {source}}
    found = []
    for node in live:
        reached = set().union(*(behind.get(i, set()) for i in node.inputs if isinstance(i, Value)))
        behind.update((v, reached) for v in node.outputs)
        if reached == {source}:
            found.append(node)
    return tuple(found)


def _beyond(forward: Function, live: tuple[Node, ...], encoder: set[Node]) -> tuple[Node, ...]:
    """The nodes on which the results depend, but for the encoder's and those that only these need."""
    needed = {r for r in forward.results if isinstance(r, Value)}
    found = []
    for node in reversed(live):
        if node not in encoder and not needed.isdisjoint(node.outputs):
            needed.update(i for i in node.inputs if isinstance(i, Value))
            found.append(node)
    return tuple(reversed(found))


def _sentence(node: Node, what: str) -> str:
    return f"{node.op.name} at {node.source or 'an unnamed place'} {what}"


def _padding_faults(nodes: Iterable[Node], mask: Value | None) -> list[str]:
    """The padding mask may be read only where the derived programs know what stands for it."""
    faults = []
    for node in nodes:
        for number, operand in enumerate(node.inputs):
            if mask is not None and operand is mask:
                known = (isinstance(node.op, Positions) and number == 1) or (
                    isinstance(node.op, Attention) and number == PADDING
                )
                if not known:
                    faults.append(_sentence(node, "reads the padding mask itself"))
    return faults


def _crossing_faults(
    nodes: Iterable[Node], encoder: tuple[Node, ...], source: Value | None, mask: Value | None
) -> list[str]:
    """What the encoder computes may be read as keys and values only, and its mask as their padding."""
    encoded: set[Value | None] = {source, mask, *(v for n in encoder for v in n.outputs)} - {None}
    faults = []
    for node in nodes:
        crosses = isinstance(node.op, Attention) and node.inputs[K] in encoded and node.inputs[V] in encoded
        for number, operand in enumerate(node.inputs):
            if operand in encoded:
                known = crosses and (number in (K, V) or (number == PADDING and operand is mask))
                if not known:
                    faults.append(_sentence(node, "reads what the encoder gives other than as keys and values"))
        if any(SOURCE in v.type.symbols for v in node.outputs) and source is not None:
            faults.append(_sentence(node, "makes a tensor along the source"))
    return faults


def _caches(nodes: Iterable[Node]) -> dict[Value, State]:
    """One state for each tensor that some attention reads as keys, as values or as both; two that read the same one
    share it."""
    caches: dict[Value, State] = {}
    layer = 0
    for node in nodes:
        if isinstance(node.op, Attention):
            both = node.inputs[K] is node.inputs[V]
            for number, kind in ((K, "kv"),) if both else ((K, "k"), (V, "v")):
                value = node.inputs[number]
                assert isinstance(value, Value)
                if value not in caches:
                    shape: tuple[Dim, ...] = (symbol(BATCH), symbol(CAPACITY), *value.type.shape[2:])
                    caches[value] = State(f"cache.{layer}.{kind}", TensorType(value.type.dtype, shape))
            layer += 1
    return caches


def _tail(function: Function, nodes: Iterable[Node], axes: SequenceAxes) -> tuple[Node, ...]:
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
