"""Canonical form: computations that do nothing vanish, movements and casts in a row become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from planish.passes.canonical import compositions, identities, placements
from planish.passes.pass_base import Context
from planish.passes.rewrite import RewritePass, Rule


class Canonicalise(RewritePass):
    """Removes casts, copies, reshapes, permutations, slices and arithmetic that change nothing, merges two reshapes,
    permutations or exact casts in a row, and joins what is written piece by piece.

    Results stay the same bit by bit, NaN and the sign of zero included: `x + 0.0`, which loses that sign, stays.
    """

    name: ClassVar[str] = "canonicalise"

    def rules(self, context: Context) -> Sequence[Rule]:
        return (*identities.RULES, *compositions.RULES, *placements.RULES)
