"""The record of an operation: one class holds every fact about it.

A subclass is a frozen dataclass whose fields are the operation's attributes. It states its name, its operands, its type
rule (`infer`), its meaning (`evaluate`, in torch), its axis rule (`axes`), what may be done to its indices (`indexing`,
`narrowed`) and how to draw a legal instance of itself (`sample`). The verifier, the interpreter, the text form, the analyses
and the tests read this record and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self, TypeVar

import sympy
import torch

from planish.ir.attributes import attribute_key, bind_dims, leaves, substitute_dims
from planish.ir.axes import AxisRule
from planish.ir.errors import IRError
from planish.ir.spaces.laws import Indexing
from planish.ir.spaces.narrowing import Cut, Narrowed
from planish.ir.types import Bindings, Dim, TensorType

T = TypeVar("T")


class Chooser(Protocol):
    """What `sample` draws from: Hypothesis in the tests, a seeded generator elsewhere."""

    def integer(self, low: int, high: int) -> int: ...
    def choice(self, options: list[T]) -> T: ...
    def boolean(self) -> bool: ...


@dataclass(frozen=True)
class Sample:
    """A legal instance of an operation: itself, and the types of its operands (None where an optional one is absent)."""

    op: Op
    operands: tuple[TensorType | None, ...]


@dataclass(frozen=True)
class Op:
    """Base of all operations.

    `operand_names` lists the operands in order; a name ending in `?` may be absent. An operation with another number of
    operands (an ATen call) leaves it None.
    """

    name: ClassVar[str]
    operand_names: ClassVar[tuple[str, ...] | None] = ()

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Give the class equality by `key` before `dataclass` would give it Python's, for which 1, 1.0 and True are one."""
        super().__init_subclass__(**arguments)
        cls.__eq__ = Op.__eq__  # type: ignore[method-assign]
        cls.__hash__ = Op.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Op):
            return NotImplemented
        return type(self) is type(other) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        """The types of the results; raises IRError with one sentence when the operands do not fit."""
        raise IRError(f"operation {self.name} declares no type rule")

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """The meaning, in torch. Attributes hold no symbols here: the interpreter calls `bind` first."""
        raise IRError(f"operation {self.name} declares no meaning")

    def axes(self, *operands: TensorType | None) -> AxisRule | None:
        """How result axes follow from operand axes; None makes the operation a barrier."""
        return None

    def indexing(self, *operands: TensorType | None) -> Indexing | None:
        """What the indices of every axis are, and what may be done to them; None makes the operation a barrier."""
        return None

    def narrowed(self, cut: Cut) -> Narrowed:
        """The operation when indices that its laws allow to be taken away are; an attribute that tells a size, and a number
        that depends on one, are what changes. Raises IRError where it cannot do without them."""
        return Narrowed(self)

    def operand_ranges(self, *operands: TensorType | None) -> dict[int, tuple[Dim, Dim]]:
        """Bounds (inclusive) by operand number, such that every combination of values within them is legal.

        Only operands whose values the types leave too free are listed: indices, starts, lengths.
        """
        return {}

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        """Draw a legal instance, attributes and operand types included."""
        raise IRError(f"operation {cls.name} declares no sampler")

    def attributes(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def key(self) -> tuple[Any, ...]:
        """Hashable identity of the operation and its attributes, by (type, bits)."""
        return self._key

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return (self.name, *((name, attribute_key(value)) for name, value in self.attributes().items()))

    def bind(self, bindings: Bindings) -> Self:
        """The operation with every symbolic dimension in its attributes replaced by its value."""
        bound: Self = bind_dims(self, bindings) if self._symbolic else self
        return bound

    @cached_property
    def _symbolic(self) -> bool:
        """Whether an attribute holds a symbolic dimension: most hold none, and every run binds every operation."""
        return any(isinstance(leaf, sympy.Expr) for leaf in leaves(self))

    def substitute(self, replacements: dict[str, Dim]) -> Self:
        """The operation with symbols in its attributes replaced by other dimensions."""
        changed: Self = substitute_dims(self, replacements)
        return changed

    def expect(self, condition: bool, sentence: str) -> None:
        """Raise IRError naming the operation unless `condition` holds; for use in `infer`."""
        if not condition:
            raise IRError(f"{self.name}: {sentence}")


def check_operand_count(op: Op, operands: tuple[object | None, ...]) -> None:
    """Raise IRError unless the number and presence of the operands fit the operation's record."""
    if op.operand_names is None:
        return
    if len(operands) != len(op.operand_names):
        names = ", ".join(op.operand_names)
        raise IRError(f"{op.name} takes {len(op.operand_names)} operands ({names}), got {len(operands)}")
    for name, operand in zip(op.operand_names, operands):
        if operand is None and not name.endswith("?"):
            raise IRError(f"{op.name} needs its operand {name!r}")
