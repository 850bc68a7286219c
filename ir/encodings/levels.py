"""Very few levels: signs, three levels, or four that have no zero among them, with one scale per group.

Source: ParetoQ (Liu et al., 2025). Its learned alpha is the scale times a constant: signs are alpha * (-1, 1), the ternary
grid is alpha * 2/3 * (-1, 0, 1), and the stretched elastic grid of two bits ("SEQ") is alpha / 4 * (-3, -1, 1, 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from planish.ir.encodings.grouped import Grid, Grouped
from planish.ir.encodings.packing import BitPacking, Packing, TritPacking
from planish.ir.errors import IRError
from planish.ir.types import dtype_name

Kind = Literal["sign", "ternary", "ternary2", "stretched"]


@dataclass(frozen=True)
class _Kind:
    """A grid, its packing, and the scale that plain rounding gives: so many times the mean or the largest magnitude."""

    grid: Grid
    packing: Packing
    of_mean: float = 0.0
    of_largest: float = 0.0


KINDS: dict[str, _Kind] = {
    "sign": _Kind(Grid(-1, 2, 2), BitPacking(1), of_mean=1.0),
    "ternary": _Kind(Grid(-1, 1, 3), TritPacking(), of_largest=2 / 3),
    "ternary2": _Kind(Grid(-1, 1, 3), BitPacking(2), of_largest=2 / 3),
    "stretched": _Kind(Grid(-3, 2, 4), BitPacking(2), of_largest=1 / 4),
}
"""By name. The two ternary ones differ in packing alone: five to a byte, or two bits each."""


@dataclass(frozen=True)
class Levels(Grouped):
    """The grid `kind` (a key of KINDS), one scale of `scale_dtype` per `group` elements of the last axis.

    An element of zero takes the level above it where zero is no level.
    """

    name: ClassVar[str] = "levels"
    kind: Kind
    group: int
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise IRError(f"no grid of levels is called {self.kind!r}; choose one of {', '.join(KINDS)}")
        super().__post_init__()

    @property
    def grid(self) -> Grid:
        return KINDS[self.kind].grid

    @property
    def packing(self) -> Packing:
        return KINDS[self.kind].packing

    def scale(self, groups: torch.Tensor) -> torch.Tensor:
        kind, size = KINDS[self.kind], groups.abs()
        return kind.of_mean * size.mean(-1, keepdim=True) + kind.of_largest * size.amax(-1, keepdim=True)

    def __str__(self) -> str:
        return f"{self.kind}g{self.group}s{dtype_name(self.scale_dtype)}"
