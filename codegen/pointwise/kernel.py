"""Kernels of fused elementwise and data-moving operations.

A `Fused` names a value to compute and how its operations unfold down to the tensors that lie in memory. Its kernel
walks the value's elements once; each operation in between is evaluated once per element and kept in a register.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr, Symbols
from planish.codegen.kernels import emit
from planish.codegen.math import hold
from planish.codegen.pointwise import loops
from planish.codegen.pointwise.dtypes import STORAGE, convert, loaded, stored
from planish.codegen.pointwise.expression import At, Call, Indices, Lazy, Pointwise
from planish.ir import Node, Operand, TensorType, Value
from planish.ir.ops import Aten


@dataclass(frozen=True)
class Leaf:
    """A tensor in memory: the type operations see, and the dtype its elements have there."""

    type: TensorType
    stored: torch.dtype


@dataclass(frozen=True, eq=False)
class Fused:
    """One value and the operations that compute it.

    Attributes:
        value: what the kernel writes.
        nodes: the operations, in order; the last one makes `value`.
        leaves: the operands read from memory, in the order of the kernel's arguments.
        rules: how each node is computed.
    """

    value: Value
    nodes: tuple[Node, ...]
    leaves: Mapping[Operand, Leaf]
    rules: Mapping[Node, Pointwise]

    @property
    def aligned(self) -> bool:
        return all(self.rules[n].aligned for n in self.nodes)


def call_of(node: Node, operands: Sequence[Lazy | None], results: Sequence[TensorType], symbols: Symbols) -> Call:
    """The call of a node on lazy operands."""
    if isinstance(node.op, Aten):
        arguments, keywords = node.op.call_arguments(tuple(operands))
        return Call(arguments, keywords, tuple(results), symbols)
    return Call(list(operands), node.op.attributes(), tuple(results), symbols)


class Unfolding:
    """Lazy tensors for the values of one fused group, over buffers that are already arguments of the kernel.

    `retype` gives the type under which a value is walked (its own, unless axes are joined). `watch` is told of every
    read of a leaf.
    """

    def __init__(
        self,
        fused: Fused,
        buffers: Mapping[Operand, Expr],
        symbols: Symbols,
        retype: Callable[[TensorType], TensorType] = lambda type: type,
        watch: Callable[[TensorType, Indices], None] = lambda type, indices: None,
    ) -> None:
        self.fused, self.buffers, self.symbols, self.retype = fused, buffers, symbols, retype
        self._watch = watch
        self._producers = {v: (node, n) for node in fused.nodes for n, v in enumerate(node.outputs)}
        self._made: dict[Any, Lazy] = {}

    def lazy(self, operand: Operand) -> Lazy:
        if operand not in self._made:
            self._made[operand] = self._leaf(operand) if operand in self.buffers else self._computed(operand)
        return self._made[operand]

    def _leaf(self, operand: Operand) -> Lazy:
        leaf, buffer = self.fused.leaves[operand], self.buffers[operand]

        def at(indices: Indices) -> Expr:
            self._watch(leaf.type, indices)
            element = buffer[indices] if indices else buffer[()]
            return convert(loaded(element, leaf.stored), leaf.stored, leaf.type.dtype)

        return Lazy(self.retype(leaf.type), at)

    def _computed(self, operand: Any) -> Lazy:
        node, number = self._producers[operand]
        operands = [None if i is None else self.lazy(i) for i in node.inputs]
        call = call_of(node, operands, [self.retype(v.type) for v in node.outputs], self.symbols)
        return Lazy(self.retype(operand.type), _once(self.fused.rules[node].rule(call)[number]))


def _once(at: At) -> At:
    """The element computed once for the same indices and kept in a variable."""
    known: dict[tuple[int, ...], tuple[Indices, Expr]] = {}

    def kept(indices: Indices) -> Expr:
        key = tuple(id(i) for i in indices)
        if key not in known:
            known[key] = (indices, hold(at(indices)))
        return known[key][1]

    return kept


def unbound(symbols: Symbols, shapes: Sequence[Sequence[Expr]]) -> list[str]:
    """Symbols in use that no argument's shape states by itself; they become arguments of their own."""
    stated = {id(size) for shape in shapes for size in shape}
    return [name for name, variable in symbols.variables.items() if id(variable) not in stated]


@dataclass
class _Draft:
    """What is learnt of a kernel by writing it once: symbols that become arguments, and an axis to walk in blocks."""

    symbols: list[str] = field(default_factory=list)
    turned: int | None = None


def fused_kernel(name: str, fused: Fused) -> tuple[Any, list[str]]:
    """The PrimFunc `(leaves..., symbols..., result)` of a fused group, and the names of these symbols."""
    draft = _Draft()
    _emit(name, fused, _Draft(), draft)
    return _emit(name, fused, draft, _Draft()), draft.symbols


def _emit(name: str, fused: Fused, draft: _Draft, learnt: _Draft) -> Any:
    symbols = Symbols()

    def body() -> None:
        leaf_shapes = [symbols.shape(leaf.type.shape) for leaf in fused.leaves.values()]
        arguments = [
            emit.argument(f"x{n}", shape, STORAGE[leaf.stored])
            for n, (leaf, shape) in enumerate(zip(fused.leaves.values(), leaf_shapes))
        ]
        for symbol in draft.symbols:
            T.arg(symbol, symbols.variable(symbol))
        result = emit.argument("y", symbols.shape(fused.value.type.shape), STORAGE[fused.value.type.dtype])
        buffers: dict[Operand, Expr] = dict(zip(fused.leaves, arguments))
        _Body(fused, buffers, result, symbols, learnt).emit(draft.turned)
        learnt.symbols = unbound(symbols, leaf_shapes)

    return emit.prim_func(name, body)


class _Body:
    """The loops of one kernel, over joined axes where every operation is aligned."""

    def __init__(
        self, fused: Fused, buffers: dict[Operand, Expr], result: Expr, symbols: Symbols, learnt: _Draft
    ) -> None:
        self.fused, self.buffers, self.result, self.symbols, self.learnt = fused, buffers, result, symbols, learnt
        self.type, self.runs = fused.value.type, [[a] for a in range(fused.value.type.rank)]
        if fused.aligned:
            self.runs = loops.joint_axes(self.type, [leaf.type for leaf in fused.leaves.values()])
        if len(self.runs) < self.type.rank:
            self.buffers = {o: self._view(b, o.type) for o, b in buffers.items()}
            self.result = self._view(result, self.type)

    def _retype(self, type: TensorType) -> TensorType:
        return loops.joined(type, self.type.rank, self.runs) if self.fused.aligned else type

    def _view(self, buffer: Expr, type: TensorType) -> Expr:
        """The same memory under the joined shape."""
        shape = self.symbols.shape(self._retype(type).shape)
        return T.decl_buffer(shape, str(buffer.dtype), data=buffer.data)

    def emit(self, turned: int | None) -> None:
        loops.for_each(self.symbols.shape(self._retype(self.type).shape), self._element, turned=turned)

    def _element(self, indices: Indices) -> None:
        def watch(type: TensorType, read: Indices) -> None:
            axis = next((a for a, i in enumerate(indices[:-1]) if read and read[-1] is i), None)
            if axis is not None and type.shape[-1] != 1:
                self.learnt.turned = axis

        # Variables of one branch or loop are not visible in another, so each gets its own unfolding.
        lazy = Unfolding(self.fused, self.buffers, self.symbols, self._retype, watch).lazy(self.fused.value)
        value = hold(lazy.at(indices))
        T.buffer_store(self.result, stored(value, self.type.dtype), list(indices))
