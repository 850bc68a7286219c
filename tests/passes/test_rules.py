"""Every rule of every registered pass, on programs drawn from the rule itself: what it makes verifies and computes the
same, and it does fire on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Module, verify
from planish.passes.check import Checker, CheckOptions
from planish.passes.checking.outcome import FAILED
from planish.passes.contract import Contract, Exact
from planish.passes.rewrite import Rule, rewrite
from planish.testing.chooser import HypothesisChooser
from planish.testing.profiles import share
from planish.testing.rules import SeededChooser, directed, registered_rules

RULES = [pytest.param(rule, id=f"{name}: {rule.name}") for name, rule in registered_rules()]
FIRES_AT_LEAST = 0.3


def apply(module: Module, rule: Rule) -> tuple[Module, bool, list[str]]:
    """The module with one rule applied, whether it matched, and how the result differs."""
    done = rewrite(module, module.functions["forward"], [rule])
    after = module.with_function(done.function).with_params(done.params)
    verify(after)
    contract: Contract = Exact()
    outcome = Checker(CheckOptions(probes=1)).check(module, after, contract, {"forward": done.correspondence})
    return after, bool(done.matches), [o.sentence for o in (*outcome.regions, *outcome.whole) if o.status == FAILED]


@pytest.mark.parametrize("rule", RULES)
@share(0.06)
@given(data=st.data())
def test_keeps_the_meaning(rule: Rule, data: st.DataObject) -> None:
    module = directed(HypothesisChooser(data.draw), rule)
    verify(module)
    after, _, faults = apply(module, rule)
    assert not faults
    again = rewrite(after, after.functions["forward"], [rule])
    assert again.function is after.functions["forward"], "a second run still finds something"


@pytest.mark.parametrize("rule", RULES)
def test_fires_on_its_own_samples(rule: Rule) -> None:
    drawn = 20
    fired = 0
    for seed in range(drawn):
        module = directed(SeededChooser(seed), rule)
        fired += bool(rewrite(module, module.functions["forward"], [rule]).matches)
    assert fired >= FIRES_AT_LEAST * drawn


@pytest.mark.full
@pytest.mark.parametrize("rule", RULES)
@share(0.5)
@given(data=st.data())
def test_keeps_the_meaning_on_many(rule: Rule, data: st.DataObject) -> None:
    module = directed(HypothesisChooser(data.draw), rule)
    assert not apply(module, rule)[2]
