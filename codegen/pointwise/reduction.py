"""Kernels that fold axes of a tensor into one value, with the elementwise operations before them fused in.

The order of the additions is fixed by the reduced sizes alone, so a row has the same bits whatever else is computed.
Where the last axis is folded, `LANES` partial results run side by side, which is both what vectors want and shorter
chains of rounding; where it is kept, a block of its elements is folded together. A GPU folds each result with a block of
threads, or with a single one where that has little to do or enough neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current
from planish.codegen.dims import Expr, Symbols
from planish.codegen.kernels import emit
from planish.codegen.kernels.blocks.fold import fold, shared_bytes
from planish.codegen.kernels.blocks.rows import threads_for
from planish.codegen.math import hold
from planish.codegen.pointwise import loops
from planish.codegen.pointwise.dtypes import STORAGE, stored
from planish.codegen.pointwise.expression import Call, Indices, Lazy
from planish.codegen.pointwise.kernel import Fused, Unfolding, call_of, unbound
from planish.codegen.simt.block import Block
from planish.ir import Operand

LANES = 32
"""Partial results of one fold along the last axis. LLVM makes the loops over them vectors: written as a vector loop, TVM
would give all lanes the one register in which an intermediate value is held."""
BLOCK = 256
"""Elements of a kept last axis that are folded together."""


LEAST_SHARED = 32
"""Elements from which on a block of threads folds them sooner than one thread."""
ENOUGH_THREADS = 1 << 14
"""Results from which on a thread for each keeps a GPU busy, if neighbours read neighbours."""


@dataclass(frozen=True)
class Fold:
    """One reduction of one call.

    Attributes:
        axes: the folded axes of the operand, in order.
        dtype: dtype (in registers) in which it accumulates.
        initial: the value that folding starts from.
        element: the operand's value as it enters the fold, in `dtype`.
        combine: of two partial results.
        finish: from the total to the result's value in its compute dtype.
    """

    axes: tuple[int, ...]
    dtype: torch.dtype
    initial: Expr
    element: Callable[[Expr], Expr]
    combine: Callable[[Expr, Expr], Expr]
    finish: Callable[[Expr], Expr]


FoldRule = Callable[[Call], Fold]


def reduction_kernel(name: str, fused: Fused, fold_of: FoldRule) -> tuple[Any, list[str]]:
    """The PrimFunc `(leaves..., symbols..., result)` of a reduction (the last node of `fused`), and these symbols."""
    _, used = _emit(name, fused, fold_of, [])
    return _emit(name, fused, fold_of, used)


def _emit(name: str, fused: Fused, fold_of: FoldRule, extra: list[str]) -> tuple[Any, list[str]]:
    symbols, used = Symbols(), list[str]()

    def body() -> None:
        shapes = [symbols.shape(leaf.type.shape) for leaf in fused.leaves.values()]
        arguments = [
            emit.argument(f"x{n}", shape, STORAGE[leaf.stored])
            for n, (leaf, shape) in enumerate(zip(fused.leaves.values(), shapes))
        ]
        for symbol in extra:
            T.arg(symbol, symbols.variable(symbol))
        result = emit.argument("y", symbols.shape(fused.value.type.shape), STORAGE[fused.value.type.dtype])
        _Reduction(fused, fold_of, dict(zip(fused.leaves, arguments)), result, symbols).emit()
        used.extend(unbound(symbols, shapes))

    return emit.prim_func(name, body), used


class _Reduction:
    def __init__(
        self, fused: Fused, fold_of: FoldRule, buffers: dict[Operand, Expr], result: Expr, symbols: Symbols
    ) -> None:
        self.fused, self.buffers, self.result, self.symbols = fused, buffers, result, symbols
        self.node = fused.nodes[-1]
        operand = self.node.inputs[0]
        assert operand is not None
        self.operand: Operand = operand
        lazies = [None if i is None else self._lazy(i) for i in self.node.inputs]
        self.fold = fold_of(call_of(self.node, lazies, [v.type for v in self.node.outputs], symbols))
        self.sizes = symbols.shape(operand.type.shape)
        self.kept = [a for a in range(operand.type.rank) if a not in self.fold.axes]

    def _lazy(self, operand: Operand) -> Lazy:
        return Unfolding(self.fused, self.buffers, self.symbols).lazy(operand)

    def _value(self, lazy: Lazy, kept: Sequence[Expr], folded: Sequence[Expr]) -> Expr:
        indices: list[Expr] = [None] * len(self.sizes)
        for axis, index in (*zip(self.kept, kept), *zip(self.fold.axes, folded)):
            indices[axis] = index
        return self.fold.element(lazy.at(tuple(indices)))

    def _store(self, kept: Sequence[Expr], total: Expr) -> None:
        type = self.fused.value.type
        indices: Indices = tuple(kept)
        if type.rank != len(kept):
            chosen = dict(zip(self.kept, kept))
            indices = tuple(chosen.get(a, T.int64(0)) for a in range(type.rank))
        T.buffer_store(self.result, stored(hold(self.fold.finish(total)), type.dtype), list(indices))

    def emit(self) -> None:
        last = len(self.sizes) - 1
        if current().fine_grained:
            self._fold_finely()
        elif not self.fold.axes or last in self.kept:
            self._fold_blocks()
        else:
            self._fold_rows()

    def _fold_finely(self) -> None:
        """A block of threads or one thread for each result."""
        kept, folded = ([self.sizes[a] for a in axes] for axes in (self.kept, self.fold.axes))
        count, results = (prod(sizes, start=emit.index(1)) for sizes in (folded, kept))
        size, neighbours = _known(count), not self.fold.axes or self.fold.axes[-1] != len(self.sizes) - 1
        enough = neighbours and (_known(results) or ENOUGH_THREADS) >= ENOUGH_THREADS
        if enough or (size is not None and size < LEAST_SHARED):
            loops.for_each(kept, self._fold_alone)
            return
        dtype, threads = STORAGE[self.fold.dtype], threads_for(size)

        def at_result(block: Block) -> None:
            indices = tuple(loops.unravel(block.index[0], kept))

            def value(number: Expr) -> Expr:
                return self._value(self._lazy(self.operand), indices, loops.unravel(number, folded))

            fold(
                block, count if size is None else size, self.fold.initial, self.fold.combine, value,
                lambda total: self._store(indices, total),
            )  # fmt: skip

        emit.launch((results,), threads, at_result, shared_bytes(threads, dtype))

    def _fold_alone(self, kept: Indices) -> None:
        """One element after another."""
        total = _local("total", 1, self.fold.dtype)
        T.buffer_store(total, self.fold.initial, [0])
        with ExitStack() as stack:
            at = [stack.enter_context(emit.loop("r", self.sizes[a])) for a in self.fold.axes]
            value = hold(self._value(self._lazy(self.operand), kept, at))
            T.buffer_store(total, self.fold.combine(total[0], value), [0])
        self._store(kept, total[0])

    def _fold_rows(self) -> None:
        """The last axis is folded: one row after another, LANES partial results at a time."""
        *outer, inner = self.fold.axes
        count = self.sizes[inner]

        def row(kept: Indices) -> None:
            partial = _local("partial", LANES, self.fold.dtype)
            with emit.loop("lane", LANES) as lane:
                T.buffer_store(partial, self.fold.initial, [lane])
            with ExitStack() as stack:
                at = [stack.enter_context(emit.loop("r", self.sizes[a])) for a in outer]

                def take(lane: Expr, position: Expr) -> None:
                    value = self._value(self._lazy(self.operand), kept, [*at, position])
                    T.buffer_store(partial, self.fold.combine(partial[lane], value), [lane])

                with emit.loop("step", count // LANES) as step, emit.loop("lane", LANES) as lane:
                    take(lane, step * LANES + lane)
                with emit.loop("rest", count % LANES) as lane:
                    take(lane, count // LANES * LANES + lane)
            half = LANES
            while half > 1:
                half //= 2
                # Through memory, which LLVM removes: nested expressions cost TVM time exponential in their depth.
                with emit.loop("lane", half) as lane:
                    T.buffer_store(partial, self.fold.combine(partial[lane], partial[lane + half]), [lane])
            self._store(kept, partial[0])

        loops.for_each([self.sizes[a] for a in self.kept], row, cost=_weight(self.sizes, self.fold.axes))

    def _fold_blocks(self) -> None:
        """The last axis is kept: a block of its elements is folded side by side."""
        inner = self.sizes[self.kept[-1]]
        blocks = emit.ceil_div(inner, BLOCK)

        def block(index: Indices) -> None:
            *kept, number = index
            start = emit.bind("start", number * BLOCK)
            width = T.min(inner - start, emit.index(BLOCK))
            partial = _local("partial", BLOCK, self.fold.dtype)
            with emit.loop("i", width) as i:
                T.buffer_store(partial, self.fold.initial, [i])
            with ExitStack() as stack:
                at = [stack.enter_context(emit.loop("r", self.sizes[a])) for a in self.fold.axes]
                with emit.loop("i", width) as i:
                    value = self._value(self._lazy(self.operand), [*kept, start + i], at)
                    T.buffer_store(partial, self.fold.combine(partial[i], value), [i])
            with emit.loop("i", width) as i:
                self._store([*kept, start + i], hold(partial[i]))

        shape = [*(self.sizes[a] for a in self.kept[:-1]), blocks]
        loops.for_each(shape, block, cost=_weight(self.sizes, self.fold.axes) * 64)


def _weight(sizes: Sequence[Expr], axes: Sequence[int]) -> int:
    """About how many elements one result folds; a symbolic size counts as a few."""
    weight = 1
    for axis in axes:
        size = sizes[axis]
        weight *= int(size) if hasattr(size, "value") else 16
    return max(1, min(weight, 1 << 14))


def _known(size: Expr) -> int | None:
    return int(size) if hasattr(size, "value") else None


def _local(name: str, size: int, dtype: torch.dtype) -> Expr:
    return emit.scratch(name, size, STORAGE[dtype])
