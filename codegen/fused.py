"""Fused kernels by what they compute, so that equal groups of different layers share one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.aten import tables
from planish.codegen.dims import Symbols
from planish.codegen.emitter import Emitter
from planish.codegen.family import Expr
from planish.codegen.kernels import emit
from planish.codegen.plan import FusedStep
from planish.codegen.pointwise import loops
from planish.codegen.pointwise.dtypes import STORAGE
from planish.codegen.pointwise.expression import Indices
from planish.codegen.pointwise.kernel import Fused, fused_kernel
from planish.codegen.pointwise.reduction import reduction_kernel
from planish.ir import Dim, Node, TensorType


class FusedKernels:
    """All fused kernels of one module under construction."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, list[str]]] = {}

    def kernel(self, step: FusedStep) -> tuple[Any, list[str]]:
        """The PrimFunc of a group and the symbols it takes after its leaves."""
        key = _key(step.fused)
        if key not in self._made:
            name = kernel_name(step)
            if step.fold is None:
                self._made[key] = fused_kernel(name, step.fused)
            else:
                self._made[key] = reduction_kernel(name, step.fused, step.fold)
        return self._made[key]

    def copy(self, emitter: Emitter, source: Expr, type: TensorType, shape: Sequence[Dim]) -> Expr:
        """A copy of a tensor in fresh memory."""
        stored = STORAGE[type.dtype]
        prim_func = self._copy("copy", TensorType(type.dtype, tuple(shape)))
        return emitter.call(prim_func, [source], [(shape, stored)])[0]

    def overwrite(self, emitter: Emitter, target: Expr, source: Expr, type: TensorType) -> Expr:
        """The target's memory holding the source's elements."""
        return emitter.call_in_place(self._copy("overwrite", type), [target, source], 0)

    def _copy(self, name: str, type: TensorType) -> Any:
        key = (name, str(type))
        if key not in self._made:

            def body() -> None:
                shape, dtype = Symbols().shape(type.shape), STORAGE[type.dtype]
                first, second = emit.argument("a", shape, dtype), emit.argument("b", shape, dtype)
                target, source = (first, second) if name == "overwrite" else (second, first)

                def element(indices: Indices) -> None:
                    T.buffer_store(target, source[indices] if indices else source[()], list(indices))

                loops.for_each(shape, element)

            self._made[key] = (emit.prim_func(name, body), [])
        return self._made[key][0]


def kernel_name(step: FusedStep) -> str:
    """The operations of a group in order, as part of an identifier."""
    names = [(tables.overload(n).split(".")[0] or n.op.name).strip("_") for n in step.fused.nodes]
    shown = names if len(names) <= 6 else [*names[:3], f"{len(names) - 5}_more", *names[-2:]]
    prefix = "fold" if step.fold is not None else "fused" if len(names) > 1 else "elementwise"
    return "_".join((prefix, *shown))


def _key(fused: Fused) -> tuple[Any, ...]:
    """Equal for groups that compute the same function of their leaves."""
    numbers: dict[Any, int] = {operand: n for n, operand in enumerate(fused.leaves)}
    parts: list[Any] = [(str(leaf.type), str(leaf.stored)) for leaf in fused.leaves.values()]
    for node in fused.nodes:
        parts.append((node.op.key(), _operands(node, numbers), tuple(str(v.type) for v in node.outputs)))
        for value in node.outputs:
            numbers[value] = len(numbers)
    return (*parts, numbers[fused.value])


def _operands(node: Node, numbers: dict[Any, int]) -> tuple[int | None, ...]:
    return tuple(None if i is None else numbers[i] for i in node.inputs)
