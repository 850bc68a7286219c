"""What a float kernel asks of a machine: the *instruction tile* of fused multiply-adds on vectors of float32.

A kernel family writes its loops against this interface and never names a processor; a target supplies the instance.
The one promise that matters is exactness: :meth:`FloatTile.fma` rounds once, on every machine, whatever the compiler
would do with a product followed by a sum. A kernel that fixes the order of its fused multiply-adds has thereby fixed
its bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

Expr: TypeAlias = Any
"""A TIR expression. TVM publishes no types, so the name only tells the reader what is meant."""

STORAGE_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""How the elements of a logical dtype lie in a kernel's buffers: bfloat16 as its bits, since many runtimes lack it."""
E4M3 = "float8_e4m3fn"
"""The eight-bit float that weights are stored in, as its bits (uint8), never NaN."""


@dataclass(frozen=True)
class FloatTile(ABC):
    """Vectors of float32 and what can be done with them in registers.

    Attributes:
        name: how reports and test ids call this tile.
        lanes: float32 elements in one vector.
        registers: vector registers a kernel may hold at once.
        features: the processor features the emitted instructions need, in the target's own vocabulary.
        entries: of the table from which :meth:`lookup` takes one number for each lane; 0 where nothing does so.
    """

    name: str
    lanes: int
    registers: int
    features: frozenset[str]
    entries: int = 0

    @abstractmethod
    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """``a * b + c`` on float32 vectors of :attr:`lanes` elements, rounded once."""

    @abstractmethod
    def broadcast(self, scalar: Expr) -> Expr:
        """A vector whose lanes all hold the float32 ``scalar``."""

    @abstractmethod
    def widen(self, vector: Expr, dtype: str) -> Expr:
        """A vector in the storage of the logical ``dtype`` (STORAGE_DTYPES or E4M3), as float32; the value is kept."""

    @abstractmethod
    def load_first(self, pointer: Expr, count: Expr) -> Expr:
        """A vector of float32 whose first ``count`` lanes come from memory; the others are zero and read nothing.

        ``count`` is any int32: nothing is read when it is not positive, every lane when it is :attr:`lanes` or more.
        """

    @abstractmethod
    def store_first(self, pointer: Expr, vector: Expr, count: Expr) -> None:
        """Emit the store of the first ``count`` lanes of ``vector``; memory behind them is not touched.

        ``count`` is any int32, read as in :meth:`load_first`.
        """

    def lookup(self, table: Expr, places: Expr) -> Expr:
        """``table[place % entries]`` for every lane, of a vector of :attr:`entries` float32 and one of int32 places."""
        raise ValueError(f"the tile {self.name} looks nothing up in a table")
