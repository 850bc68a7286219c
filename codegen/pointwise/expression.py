"""Tensors as functions of their indices: what elementwise and data-moving operations are fused from.

A `Lazy` tensor computes one element from its indices; operations compose such functions, and a kernel evaluates the
last of them in its loops. Values are in the compute dtype of their logical dtype (see `dtypes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from tvm.tirx.script import builder as T

from planish.codegen.dims import Expr, Symbols
from planish.codegen.pointwise.dtypes import convert, literal
from planish.ir import Dim, TensorType

Indices: TypeAlias = "tuple[Expr, ...]"
At: TypeAlias = "Callable[[Indices], Expr]"


@dataclass(frozen=True, eq=False)
class Lazy:
    """A tensor of that type whose element at some indices is `at(indices)`."""

    type: TensorType
    at: At

    def read(self, indices: Indices) -> Expr:
        """The element that broadcasting puts at `indices` of a result: axes align from the right."""
        aligned = indices[len(indices) - self.type.rank :]
        zero = T.int64(0)
        return self.at(tuple(zero if dim == 1 else i for dim, i in zip(self.type.shape, aligned)))


@dataclass(frozen=True)
class Call:
    """One call of an operation while its kernel is written: arguments with lazy tensors for operands."""

    arguments: Sequence[Any]
    keywords: dict[str, Any]
    results: tuple[TensorType, ...]
    symbols: Symbols

    @property
    def result(self) -> TensorType:
        """The type of the first result."""
        return self.results[0]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at a position or, failing that, of a name."""
        if position < len(self.arguments):
            return self.arguments[position]
        return self.keywords.get(name, default)

    def size(self, dim: Dim) -> Expr:
        return self.symbols.size(dim)

    def value(self, argument: Any, dtype: torch.dtype, indices: Indices) -> Expr:
        """An argument (tensor or number) at `indices` of the result, converted to `dtype`."""
        if isinstance(argument, Lazy):
            return convert(argument.read(indices), argument.type.dtype, dtype)
        if isinstance(argument, (bool, int, float)):
            return literal(argument, dtype)
        return convert(self.size(argument), torch.int64, dtype)


Rule: TypeAlias = "Callable[[Call], list[At]]"


@dataclass(frozen=True)
class Pointwise:
    """How an operation is computed element by element.

    Attributes:
        rule: from a call to one function of indices for each result.
        aligned: each element depends on the operands' elements at its own, broadcast indices alone, so adjacent axes
            may be walked as one.
        cheap: it only moves or fills; computing an element twice costs no more than reading it twice.
        whole: operands that must lie in memory, because they are read at indices that are only known, or only legal,
            when the element is computed. None stands for all of them.
    """

    rule: Rule
    aligned: bool = False
    cheap: bool = False
    whole: tuple[int, ...] | None = ()

    def needs_whole(self, operand: int) -> bool:
        return self.whole is None or operand in self.whole
