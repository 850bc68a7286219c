"""Rows of a table picked by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from planish.ir.axes import AxisRule, AxisTie, leading_ties
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float, choose_leading
from planish.ir.spaces.laws import Indexing, elementwise, fresh, linear, operand, result
from planish.ir.types import Dim, TensorType, as_dim


@dataclass(frozen=True)
class Embedding(Op):
    """y[..., :] = table[ids[...], :]; an index outside the table is an error."""

    name: ClassVar[str] = "embedding"
    operand_names: ClassVar[tuple[str, ...]] = ("ids", "table")

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        ids, table = operands
        assert ids is not None and table is not None
        self.expect(ids.dtype in (torch.int64, torch.int32), f"the indices must be i64 or i32, got {ids}")
        self.expect(table.rank == 2, f"the table must be [entries, size], got {table}")
        return (table.with_shape((*ids.shape, table.shape[1])),)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        ids, table = operands
        assert ids is not None and table is not None
        return (F.embedding(ids, table),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        ids = operands[0]
        assert ids is not None
        return AxisRule((*leading_ties(0, ids.rank), AxisTie(1, 1, 0, ids.rank)))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        ids, table = operands
        assert ids is not None and table is not None
        lead, (entries, size) = fresh(*ids.shape), fresh(*table.shape)
        laws = [linear(size, operand(1), result()), *(elementwise(row, [operand(0), result()]) for row in lead)]
        return Indexing((lead, (entries, size)), ((*lead, size),), tuple(laws))

    def operand_ranges(self, *operands: TensorType | None) -> dict[int, tuple[Dim, Dim]]:
        table = operands[1]
        assert table is not None
        return {0: (0, as_dim(table.shape[0] - 1))}

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        ids = TensorType(choose.choice([torch.int64, torch.int32]), choose_leading(choose))
        return Sample(cls(), (ids, TensorType(choose_float(choose), (choose.integer(1, 9), choose.integer(1, 6)))))
