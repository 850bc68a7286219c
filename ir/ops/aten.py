"""Any functional ATen operator as an operation: its type comes from fake tensors, its meaning is torch's own.

Its axis rule is a barrier unless `aten_axes` declares one for the overload.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, ClassVar

import torch

from planish.ir.attributes import Attribute
from planish.ir.axes import AxisRule
from planish.ir.errors import IRError
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.aten_axes import ATEN_AXES
from planish.ir.ops.aten_indexing import ATEN_INDEXING
from planish.ir.ops.aten_narrowing import ATEN_NARROWING, PICKED, renumbered
from planish.ir.ops.aten_ranges import ATEN_RANGES
from planish.ir.ops.aten_samples import ATEN_SAMPLES
from planish.ir.ops.fake import infer_types
from planish.ir.spaces.laws import Indexing, at_operands
from planish.ir.spaces.narrowing import Cut, Narrowed
from planish.ir.types import Dim, TensorType


@dataclass(frozen=True)
class Slot:
    """Stands in an argument list for the operand of that number."""

    index: int


_INFERRED: dict[Any, tuple[TensorType, ...]] = {}


@cache
def resolve_overload(overload: str) -> torch._ops.OpOverload:
    """The ATen operator called `packet.overload` ("add.Tensor"); raises IRError when torch has none or it mutates."""
    packet, _, variant = overload.partition(".")
    try:
        operator = getattr(getattr(torch.ops.aten, packet), variant or "default")
    except AttributeError:
        raise IRError(f"torch {torch.__version__} has no operator aten.{overload}") from None
    if not isinstance(operator, torch._ops.OpOverload) or operator._schema.is_mutable:
        raise IRError(f"aten.{overload} is not a functional operator; functionalise the program before importing it")
    return operator


@dataclass(frozen=True)
class Aten(Op):
    """A call of `aten.<overload>`: positional and keyword arguments as attributes, with a `Slot` for each operand."""

    name: ClassVar[str] = "aten"
    operand_names: ClassVar[tuple[str, ...] | None] = None
    overload: str
    arguments: tuple[Attribute, ...] = ()
    keywords: tuple[tuple[str, Attribute], ...] = ()

    def slots(self) -> tuple[int, ...]:
        """Operand numbers in the order in which the arguments mention them."""
        found: list[int] = []
        _fill((self.arguments, self.keywords), lambda slot: found.append(slot.index))
        return tuple(found)

    def call_arguments(self, operands: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        """The operator's arguments with each slot replaced by its operand; tuples become lists."""
        if sorted(set(self.slots())) != list(range(len(operands))):
            raise IRError(f"aten.{self.overload} mentions operands {sorted(set(self.slots()))}, got {len(operands)}")
        filled = _fill((self.arguments, tuple(v for _, v in self.keywords)), lambda slot: operands[slot.index])
        return list(filled[0]), dict(zip((k for k, _ in self.keywords), filled[1]))

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        # Fake evaluation costs milliseconds and the layers of a model repeat the same calls.
        key = (self.key(), tuple(str(o) for o in operands))
        if key not in _INFERRED:
            arguments, keywords = self.call_arguments(operands)
            _INFERRED[key] = infer_types(resolve_overload(self.overload), arguments, keywords)
        return _INFERRED[key]

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        arguments, keywords = self.call_arguments(operands)
        result = resolve_overload(self.overload)(*arguments, **keywords)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def axes(self, *operands: TensorType | None) -> AxisRule | None:
        rule = ATEN_AXES.get(self.overload)
        if rule is None:
            return None
        arguments, keywords = self.call_arguments(tuple(range(len(operands))))
        return rule(arguments, keywords, operands, self.infer(*operands))

    def indexing(self, *operands: TensorType | None) -> Indexing | None:
        rule = ATEN_INDEXING.get(self.overload)
        if rule is None:
            return None
        # Rules know each mention of an operand by its number.
        slots, mentions = self.slots(), count()
        arguments, keywords = _fill((self.arguments, tuple(v for _, v in self.keywords)), lambda slot: next(mentions))
        names = (name for name, _ in self.keywords)
        found = rule(arguments, dict(zip(names, keywords)), tuple(operands[n] for n in slots), self.infer(*operands))
        return found if found is None or slots == tuple(range(len(operands))) else at_operands(found, slots)

    def narrowed(self, cut: Cut) -> Narrowed:
        rule, slots = ATEN_NARROWING.get(self.overload), self.slots()
        # Rules know each mention of an operand by its number.
        before, after = (tuple(types[n] for n in slots) for types in (cut.before, cut.after))
        cut = Cut(tuple(cut.kept[n] for n in slots), before, after, cut.results)
        if self.overload in PICKED:
            found = renumbered(list(self.arguments), dict(self.keywords), cut)
            return Narrowed(self, renumbered={slots[mention]: staying for mention, staying in found.items()})
        if rule is None:
            return Narrowed(self)
        overload, arguments, keywords, factor = rule(self.overload, list(self.arguments), dict(self.keywords), cut)
        return Narrowed(aten(overload, *arguments, **keywords), factor=factor)

    def operand_ranges(self, *operands: TensorType | None) -> dict[int, tuple[Dim, Dim]]:
        ranges = ATEN_RANGES.get(self.overload)
        return {} if ranges is None else ranges(self.call_arguments(tuple(range(len(operands))))[0], operands)

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        return cls.sample_overload(choose.choice(list(ATEN_SAMPLES)), choose)

    @classmethod
    def sample_overload(cls, overload: str, choose: Chooser) -> Sample:
        """A legal call of one overload that has a sampler."""
        arguments, keywords = ATEN_SAMPLES[overload](choose)
        operands: list[TensorType] = []

        def slotted(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return tuple(slotted(v) for v in value)
            if not isinstance(value, TensorType):
                return value
            operands.append(value)
            return Slot(len(operands) - 1)

        return Sample(aten(overload, *slotted(arguments), **keywords), tuple(operands))


def _fill(value: Attribute, replace: Any) -> Any:
    """The value as nested lists, with `replace(slot)` for every slot; its own recursion, because a slot is a dataclass."""
    if isinstance(value, Slot):
        return replace(value)
    if isinstance(value, tuple):
        return [_fill(v, replace) for v in value]
    return value


def aten(overload: str, *arguments: Attribute, **keywords: Attribute) -> Aten:
    """An ATen call from Python values; lists become tuples."""

    def freeze(value: Any) -> Any:
        return tuple(freeze(v) for v in value) if isinstance(value, (list, tuple)) else value

    return Aten(overload, freeze(arguments), tuple(sorted((k, freeze(v)) for k, v in keywords.items())))


__all__ = ["Aten", "Slot", "aten", "resolve_overload"]
