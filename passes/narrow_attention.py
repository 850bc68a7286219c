"""Keys and values narrowed to what they follow from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from planish.passes.narrowing import heads, latent
from planish.passes.pass_base import Context
from planish.passes.rewrite import RewritePass, Rule

FAMILIES = (heads, latent)


class NarrowAttention(RewritePass):
    """Attention reads the narrowest tensors from which its keys and values follow position by position, so that the
    states of the programs derived afterwards are as small as they can be.

    Heads that repeat are read once. Projections of a latent that keys and values share are absorbed: by the queries on
    one side and by the result on the other, when the state shrinks by at least the factor by which attention's work
    grows (see `narrowing.latent`).
    """

    name: ClassVar[str] = "narrow-attention"

    def rules(self, context: Context) -> Sequence[Rule]:
        return [rule for family in FAMILIES for rule in family.RULES]
