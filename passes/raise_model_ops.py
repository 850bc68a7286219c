"""Patterns of ATen calls raised to model operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from planish.passes.contract import Contract, Exact, Refines
from planish.passes.pass_base import Context
from planish.passes.raising import attention, eager_attention, gated, linear, norms, positions, rope, rows
from planish.passes.rewrite import RewritePass, Rule

FAMILIES = (linear, norms, rows, rope, positions, eager_attention, attention, gated)


class RaiseModelOps(RewritePass):
    """Recognise linear maps, embeddings, convolutions, norms, rotary embeddings, positions, attention and gated
    activations by data flow, and say of everything that nearly fits why it was left as it is.

    A query that sees no key attends to nothing (zeros), while models spell masks in ways that make it attend to
    everything alike. Such queries are padding: `where` names the boolean input that tells real tokens, and results are
    promised there only. Without it the promise covers every result.
    """

    name: ClassVar[str] = "raise-model-ops"
    where: str | None = None

    @property
    def contract(self) -> Contract:
        return Exact() if self.where is None else Refines(self.where)

    def rules(self, context: Context) -> Sequence[Rule]:
        return [rule for family in FAMILIES for rule in family.RULES]
