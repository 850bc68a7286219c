"""Kernels of fused elementwise and data-moving operations.

A `Fused` names a value to compute and how its operations unfold down to the tensors that lie in memory. Its kernel
walks the value's elements once; each operation in between is evaluated once per element and kept in a register.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

    `retype` gives the type under which a value is walked (its own, unless axes are joined).
    """

    def __init__(
        self,
        fused: Fused,
        buffers: Mapping[Operand, Expr],
        symbols: Symbols,
        retype: Callable[[TensorType], TensorType] = lambda type: type,
    ) -> None:
        self.fused, self.buffers, self.symbols, self.retype = fused, buffers, symbols, retype
        self._producers = {v: (node, n) for node in fused.nodes for n, v in enumerate(node.outputs)}
        self._made: dict[Any, Lazy] = {}

    def lazy(self, operand: Operand) -> Lazy:
        if operand not in self._made:
            self._made[operand] = self._leaf(operand) if operand in self.buffers else self._computed(operand)
        return self._made[operand]

    def _leaf(self, operand: Operand) -> Lazy:
        leaf, buffer = self.fused.leaves[operand], self.buffers[operand]

        def at(indices: Indices) -> Expr:
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


def fused_kernel(name: str, fused: Fused) -> tuple[Any, list[str]]:
    """The PrimFunc `(leaves..., symbols..., result)` of a fused group, and the names of these symbols."""
    # Which symbols occur is known only once the body is written, so it is written twice.
    _, used = _emit(name, fused, [])
    return _emit(name, fused, used)


def _emit(name: str, fused: Fused, extra: list[str]) -> tuple[Any, list[str]]:
    symbols, used = Symbols(), list[str]()

    def body() -> None:
        leaf_shapes = [symbols.shape(leaf.type.shape) for leaf in fused.leaves.values()]
        arguments = [
            emit.argument(f"x{n}", shape, STORAGE[leaf.stored])
            for n, (leaf, shape) in enumerate(zip(fused.leaves.values(), leaf_shapes))
        ]
        for symbol in extra:
            T.arg(symbol, symbols.variable(symbol))
        result = emit.argument("y", symbols.shape(fused.value.type.shape), STORAGE[fused.value.type.dtype])
        buffers: dict[Operand, Expr] = dict(zip(fused.leaves, arguments))
        _body(fused, buffers, result, symbols)
        used.extend(unbound(symbols, leaf_shapes))

    return emit.prim_func(name, body), used


def _body(fused: Fused, buffers: dict[Operand, Expr], result: Expr, symbols: Symbols) -> None:
    type = fused.value.type
    if fused.aligned:
        runs = loops.joint_axes(type, [leaf.type for leaf in fused.leaves.values()])
        rank = type.rank

        def retype(other: TensorType) -> TensorType:
            return loops.joined(other, rank, runs)

        if len(runs) < rank:
            buffers = {o: _view(b, symbols.shape(retype(o.type).shape)) for o, b in buffers.items()}
            result = _view(result, symbols.shape(retype(type).shape))
    else:

        def retype(other: TensorType) -> TensorType:
            return other

    def element(indices: Indices) -> None:
        # Variables of one branch or loop are not visible in another, so each gets its own unfolding.
        lazy = Unfolding(fused, buffers, symbols, retype).lazy(fused.value)
        T.buffer_store(result, stored(hold(lazy.at(indices)), type.dtype), list(indices) or [])

    loops.for_each(symbols.shape(retype(type).shape), element)


def _view(buffer: Expr, shape: tuple[Expr, ...]) -> Expr:
    """The same memory under another shape."""
    return T.decl_buffer(shape, str(buffer.dtype), data=buffer.data)
