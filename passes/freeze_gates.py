"""Gates that have been decided, taken out of a network with everything that only they kept alive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from planish.ir.module import Module
from planish.passes.common_subexpressions import CommonSubexpressions
from planish.passes.compact import Compact
from planish.passes.dead_code import DeadCode
from planish.passes.fold_constants import FoldConstants
from planish.passes.gating.order import put_in_order
from planish.passes.gating.selections import EVERYTHING, SELECTIONS
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult
from planish.passes.rewrite import Rule, rewrite
from planish.passes.sequel import Sequel


class FreezeGates(Pass):
    """Turns selections between two tensors whose condition is known into partitions of channels, and takes out what they
    leave unread.

    before: y = where(@gate, conv(x, @own), conv(x, @shared)); linear(y, @next)
    after:  y = cat(conv(x, @own[chosen]), conv(x, @shared[others])); linear(y, @next[:, chosen + others])

    What depends on parameters only is folded first. A gate is `where(gate, a, b)`, or `a * gate + b * (1 - gate)` with
    numbers 0 and 1, that changes along one axis. The channels of `a` and `b` that are read come one after the other; their
    order is multiplied into what reads them where the space allows it, and stays a gather of channels where it does not.
    Then what is dead goes (`compact`), and what is computed twice is computed once. A gate that depends on inputs stays,
    and is named. A channel that is not read may hold NaN.

    Source of such networks: Bejnordi et al., InterroGate (2024).
    """

    name: ClassVar[str] = "freeze-gates"

    def rules(self, context: Context) -> Sequence[Rule]:
        """The rewrites among its steps."""
        return (*SELECTIONS, EVERYTHING)

    def apply(self, module: Module, context: Context) -> PassResult:
        steps = Sequel(module)
        steps.then(FoldConstants().apply(module, context))
        chosen = steps.then(_rewritten(steps.module, SELECTIONS))
        if not chosen.matches:
            return PassResult(module, 0, refusals=chosen.refusals)
        steps.then(DeadCode().apply(steps.module, context))
        steps.then(put_in_order(steps.module))
        compacted = steps.then(Compact().apply(steps.module, context))
        steps.then(_rewritten(steps.module, (EVERYTHING,)))
        for step in (CommonSubexpressions(), DeadCode()):
            steps.then(step.apply(steps.module, context))
        details = {"gates frozen": chosen.matches, "indices dropped": compacted.details.get("indices dropped", 0)}
        refusals = (*chosen.refusals, *compacted.refusals)
        return PassResult(steps.module, chosen.matches, steps.correspondence, refusals, details)


def _rewritten(module: Module, rules: tuple[Rule, ...]) -> PassResult:
    """All functions after some rules."""
    result, matches, refusals = module, 0, list[str]()
    correspondence: dict[str, Correspondence] = {}
    for name, function in module.functions.items():
        done = rewrite(result, function, rules)
        correspondence[name], refusals = done.correspondence, [*refusals, *done.refusals]
        matches += sum(done.matches.values())
        if done.function is not function:
            result = result.with_function(done.function).with_params(done.params)
    return PassResult(result, matches, correspondence, tuple(refusals))
