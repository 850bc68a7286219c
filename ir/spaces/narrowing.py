"""Operations over fewer indices: what becomes of one when indices are taken away from its axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from planish.ir.errors import IRError
from planish.ir.types import TensorType

if TYPE_CHECKING:
    from planish.ir.op import Op

Kept = tuple["torch.Tensor | None", ...]
"""For each axis which indices stay, bool [size]; None where all do."""


@dataclass(frozen=True, eq=False)
class Cut:
    """What is taken away around one node.

    Attributes:
        kept: for each operand (None for an absent one) what stays of its axes.
        before, after: types of the operands.
        results: types of the results after.
    """

    kept: tuple[Kept | None, ...]
    before: tuple[TensorType | None, ...]
    after: tuple[TensorType | None, ...]
    results: tuple[TensorType, ...]

    def staying(self, operand: int, axis: int, first: int, last: int) -> int:
        """How many indices from `first` up to `last` (exclusive) of an axis of known size stay."""
        of = self.kept[operand]
        kept = None if of is None else of[axis]
        return max(0, last - first) if kept is None else int(kept[first:last].sum())


@dataclass(frozen=True, eq=False)
class Narrowed:
    """An operation that does over fewer indices what it did over all of them, those taken away having been zero.

    Attributes:
        op: the operation.
        gains: by operand number, what that operand has to be multiplied by; an absent one becomes a vector of it.
        renumbered: by operand number, which of the indices that its integers stand for stay, bool [indices].
        factor: what the first result has to be multiplied by.
    """

    op: Op
    gains: Mapping[int, float] = field(default_factory=dict)
    renumbered: Mapping[int, torch.Tensor] = field(default_factory=dict)
    factor: float = 1.0


def renumber(integers: torch.Tensor, staying: torch.Tensor) -> torch.Tensor:
    """The numbers that indices have once only some stay; raises IRError when one of them is gone."""
    if not bool(staying[integers].all()):
        raise IRError("an index that it reads would be gone")
    return (staying.cumsum(0) - 1)[integers]


def share(operand: int, axis: int, cut: Cut) -> float:
    """What part of an axis stays; raises IRError where its size is not known."""
    before, after = cut.before[operand], cut.after[operand]
    assert before is not None and after is not None
    whole, left = before.shape[axis], after.shape[axis]
    if not isinstance(whole, int) or not isinstance(left, int):
        raise IRError(f"an axis of {whole} indices has no known part of {left}")
    return left / whole
