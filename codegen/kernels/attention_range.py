"""Which keys a query of attention sees: a range of them, before padding is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import Expr

if TYPE_CHECKING:
    from planish.codegen.kernels.attention import Attention


class VisibleRange:
    """Rows of queries that share a key-value head: row r is query r // group of head r % group.

    Attributes:
        config: the kernel.
        start: position of the first query.
        head: the key-value head.
        keys: how many keys there are.
    """

    config: Attention
    start: Expr
    head: Expr
    keys: Expr

    def position(self, row: Expr) -> Expr:
        """Where the query of a row stands in the sequence."""
        return self.start + row // self.config.group

    def query_head(self, row: Expr) -> Expr:
        """Number of the query head of a row."""
        return self.head * self.config.group + row % self.config.group

    def lowest(self, position: Expr) -> Expr:
        """The first key visible at a position; grows with it."""
        lowest = emit.index(0)
        if self.config.window is not None:
            lowest = T.max(lowest, position - (self.config.window - 1))
        if self.config.chunk is not None:
            lowest = T.max(lowest, position // self.config.chunk * self.config.chunk)
        return lowest

    def end(self, position: Expr) -> Expr:
        """The first key no longer visible at a position; grows with it."""
        end = self.keys
        if self.config.causal:
            end = T.min(end, position + 1)
        if self.config.chunk is not None:
            end = T.min(end, (position // self.config.chunk + 1) * self.config.chunk)
        return end
