"""What a kernel family tells the lowering: which nodes it serves, what it packs, what it emits, what that costs.

A family is glue: the loops themselves are written in `kernels`, against the instruction tiles of the target. Families
outside the package register as `planish.kernels` entry points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeAlias

import torch

from planish.codegen.states import Layout
from planish.codegen.target import Target
from planish.ir import Computed, Dim, Grouped, Module, Node, Operand, Param, ParamRef

Expr: TypeAlias = Any
"""A Relax or TIR expression."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor that the artifact stores for a kernel: made once, when the artifact is written.

    Attributes:
        key: names content and layout; equal keys are stored once.
        dtype, shape: of the stored tensor; bfloat16 is stored as the uint16 of its bits.
        make: reads the parameter and lays it out.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


class Emitter(Protocol):
    """What a kernel may write into the function under construction."""

    def call(
        self,
        function: Any,
        inputs: Sequence[Expr],
        results: Sequence[tuple[Sequence[Dim], str]],
        symbols: Sequence[str] = (),
    ) -> list[Expr]:
        """Call a PrimFunc `(inputs..., symbols..., results...)`; each result is a shape and a storage dtype."""
        ...

    def call_in_place(self, function: Any, inputs: Sequence[Expr], written: int) -> Expr:
        """Call a PrimFunc that overwrites its input number `written`; returns that tensor after the call."""
        ...

    def view(self, tensor: Expr, shape: Sequence[Dim]) -> Expr:
        """The same memory under another shape."""
        ...

    def weight(self, packed: Packed) -> Expr:
        """A stored tensor; it must be among the kernel's `weights`."""
        ...


@dataclass(frozen=True, eq=False)
class Kernel:
    """The decision how one node is computed.

    Attributes:
        name: the family and its variant, for the report.
        schedule: how its loops are arranged, for the report.
        reads: numbers of the operands that `emit` is given as tensors; the others arrive as None.
        emit: from the operands to the results.
        weights: the stored tensors it uses.
        traffic: bytes it must read and write.
        work: arithmetic operations.
        arithmetic: "float32" or "int8": which of the machine's speeds bounds the work.
        join: given the node that makes operand 0, and whether others read that too, the kernel of both, whose `reads` are
            then that node's operands, and whose last result is operand 0 where others read it; None where there is none.
    """

    name: str
    schedule: str
    reads: tuple[int, ...]
    emit: Callable[[Emitter, Sequence[Expr | None]], Sequence[Expr]]
    weights: tuple[Packed, ...] = ()
    traffic: Dim = 0
    work: Dim = 0
    arithmetic: str = "float32"
    join: Callable[[Node, bool], Kernel | None] | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """Where a node stands: its module, the target, and how states lie in memory.

    `layouts` gives the layout of every value that lives in a state's memory.
    """

    module: Module
    target: Target
    layouts: dict[Operand, Layout] = field(default_factory=dict)

    def param(self, operand: Operand | None) -> Param | None:
        """The parameter that an operand is, with scales that kernels read, or None."""
        return with_float_scales(self.module.params[operand.name]) if isinstance(operand, ParamRef) else None


def with_float_scales(param: Param) -> Param:
    """The parameter itself, or, where its scales are int8 multiples, the same numbers with scales of float32."""
    encoding = param.encoding
    if not isinstance(encoding, Grouped) or encoding.scale_dtype != torch.int8:
        return param

    def widened() -> dict[str, torch.Tensor]:
        storage = dict(param.storage())
        scales = encoding.scales(storage)
        del storage["block_scales"]
        return {**storage, "scales": scales}

    wide = replace(encoding, scale_dtype=torch.float32)  # type: ignore[type-var, call-arg]
    return Param(param.name, param.type, wide, Computed(widened))


class Family(ABC):
    """One kind of kernel.

    `ops` names what it may serve: operation names, or `aten.<overload>`.
    """

    name: ClassVar[str]
    ops: ClassVar[frozenset[str]]

    @abstractmethod
    def select(self, node: Node, site: Site) -> Kernel | str:
        """The kernel for a node, or one clause saying why this family has none for it."""
