"""The rewrite engine: patterns, guards, sharing, several results, termination, and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from planish.ir import Builder, Interpreter, Module, ParamRef, TensorType, Value, dense_param, verify
from planish.ir.errors import IRError
from planish.ir.ops import Linear, RmsNorm, Slot, aten
from planish.passes.pass_base import PassError
from planish.passes.patterns import OneOf, Result, call, op, trace, where
from planish.passes.rewrite import Match, Replacement, Rule, pattern_rule, rewrite

F32 = torch.float32
KIND = TensorType(F32, (3, 4))


def program(build: Callable[[Builder, Value], Any]) -> Module:
    """A module whose function "forward" computes what `build` returns from x f32[3, 4]; it has parameters w and v."""
    builder = Builder("forward")
    x = builder.input("x", KIND)
    results = build(builder, x)
    results = results if isinstance(results, tuple) else (results,)
    function = builder.finish(results, [f"y{n}" for n in range(len(results))])
    generator = torch.Generator().manual_seed(1)
    params = [dense_param(n, torch.randn(s, generator=generator)) for n, s in (("w", (4, 4)), ("v", (2, 4)))]
    return Module({"forward": function}, {p.name: p for p in params})


def neg(b: Builder, x: Any) -> Value:
    return b.emit(aten("neg.default", Slot(0)), x)


def binary(b: Builder, name: str, x: Any, y: Any) -> Value:
    return b.emit(aten(f"{name}.Tensor", Slot(0), Slot(0) if x is y else Slot(1)), *([x] if x is y else [x, y]))


def no_sample(choose: Any) -> dict[str, Any]:
    return {}


def run(module: Module, *rules: Rule) -> tuple[Module, dict[str, int], tuple[str, ...]]:
    """The rewritten module, which verifies and computes the same."""
    done = rewrite(module, module.functions["forward"], rules)
    after = module.with_function(done.function).with_params(done.params)
    verify(after)
    x = torch.randn(3, 4)
    for a, b in zip(*(Interpreter(m, promote=True).run("forward", [x]).outputs.values() for m in (module, after))):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    for old, new in done.correspondence.items():
        assert old.type == new.type
    return after, dict(done.matches), done.refusals


def names(module: Module) -> list[str]:
    return [n.op.attributes().get("overload", n.op.name) for n in module.functions["forward"].nodes]


DOUBLE_NEG = pattern_rule(
    "double negation",
    lambda x: call("neg.default", call("neg.default", x)),
    lambda to, m: m["x"],
    lambda choose: {"x": KIND},
)


def test_nothing_to_do_gives_the_same_function() -> None:
    module = program(lambda b, x: neg(b, x))
    done = rewrite(module, module.functions["forward"], [DOUBLE_NEG])
    assert done.function is module.functions["forward"] and not done.matches


def test_until_nothing_matches() -> None:
    def chain(b: Builder, x: Value) -> Value:
        for _ in range(7):
            x = neg(b, x)
        return x

    after, matches, _ = run(program(chain), DOUBLE_NEG)
    assert names(after) == ["neg.default"] and matches == {"double negation": 3}


def test_an_inner_value_that_is_read_elsewhere_refuses() -> None:
    def shared(b: Builder, x: Value) -> tuple[Value, Value]:
        inner = neg(b, x)
        return neg(b, inner), b.emit(aten("abs.default", Slot(0)), inner)

    after, matches, refusals = run(program(shared), DOUBLE_NEG)
    assert not matches and len(after.functions["forward"].nodes) == 3
    assert refusals == ("double negation at neg.default: the inner result of neg.default is also read by abs.default",)


def test_a_result_of_the_function_is_a_reader_too() -> None:
    def shared(b: Builder, x: Value) -> tuple[Value, Value]:
        inner = neg(b, x)
        return neg(b, inner), inner

    _, matches, refusals = run(program(shared), DOUBLE_NEG)
    assert not matches and "as a result of the function" in refusals[0]


def test_keeping_what_is_shared() -> None:
    rule = pattern_rule(
        "double negation, shared", lambda x: call("neg.default", call("neg.default", x)), lambda to, m: m["x"], no_sample,
        keeps_shared=True,
    )  # fmt: skip

    def shared(b: Builder, x: Value) -> tuple[Value, Value]:
        inner = neg(b, x)
        return neg(b, inner), inner

    after, matches, _ = run(program(shared), rule)
    assert matches and names(after) == ["neg.default"]


FACTOR = pattern_rule(
    "factor out",
    lambda x, y, z: call("add.Tensor", call("mul.Tensor", x, y), call("mul.Tensor", x, z)),
    lambda to, m: to.call("mul.Tensor", self=m["x"], other=to.call("add.Tensor", self=m["y"], other=m["z"])),
    no_sample,
)


@pytest.mark.parametrize("flip", range(4))
def test_commuted_operands(flip: int) -> None:
    """x * y + x * z in every order of its operands."""

    def build(b: Builder, x: Value) -> Value:
        y, z = neg(b, x), b.emit(aten("abs.default", Slot(0)), x)
        a = binary(b, "mul", x, y) if flip & 1 else binary(b, "mul", y, x)
        c = binary(b, "mul", x, z) if flip & 2 else binary(b, "mul", z, x)
        return binary(b, "add", a, c)

    after, matches, _ = run(program(build), FACTOR)
    assert matches == {"factor out": 1} and names(after).count("mul.Tensor") == 1


def test_subtraction_does_not_commute() -> None:
    rule = pattern_rule(
        "x - neg(y)", lambda x, y: call("sub.Tensor", x, call("neg.default", y)),
        lambda to, m: to.call("add.Tensor", self=m["x"], other=m["y"]), no_sample,
    )  # fmt: skip
    _, matches, _ = run(program(lambda b, x: binary(b, "sub", neg(b, x), x)), rule)
    assert not matches


def test_a_variable_twice_is_one_operand() -> None:
    rule = pattern_rule(
        "x - x",
        lambda x: call("sub.Tensor", x, x),
        lambda to, m: to.call("mul.Scalar", self=m["x"], other=0.0),
        no_sample,
    )
    assert run(program(lambda b, x: binary(b, "sub", x, x)), rule)[1]
    assert not run(program(lambda b, x: binary(b, "sub", x, neg(b, x))), rule)[1]


def test_attributes_are_the_same_only_by_type_and_bits() -> None:
    rule = pattern_rule("add one", lambda x: call("add.Tensor", x, 1), lambda to, m: m["x"], no_sample)
    module = program(lambda b, x: b.emit(aten("add.Tensor", Slot(0), 1.0), x))
    assert not rewrite(module, module.functions["forward"], [rule]).matches


def test_attribute_variables_and_conditions() -> None:
    def left(x: Any, *, eps: Any) -> Any:
        return op(RmsNorm, x, None, eps=where(eps, lambda value: value > 1e-4))

    rule = pattern_rule(
        "round eps",
        left,
        lambda to, m: to.emit(RmsNorm(m["eps"]), to.call("clone.default", self=m["x"]), None),
        no_sample,
    )
    found = [
        rewrite(m, m.functions["forward"], [once(rule)]).matches
        for m in (program(lambda b, x, e=e: b.emit(RmsNorm(e), x, None)) for e in (1e-3, 1e-5))
    ]
    assert [bool(f) for f in found] == [True, False]


def once(rule: Rule) -> Rule:
    """The rule, which looks at no node that it made itself."""

    def find(node: Any, graph: Any) -> Any:
        return None if graph.is_call(node.inputs[0], "clone.default") else rule.find(node, graph)

    return replace(rule, find=find)


def test_alternatives() -> None:
    def left(x: Any) -> Any:
        return call("abs.default", OneOf((call("neg.default", x), call("abs.default", x))))

    rule = pattern_rule("abs of either", left, lambda to, m: to.call("abs.default", self=m["x"]), no_sample)
    after, matches, _ = run(
        program(lambda b, x: b.emit(aten("abs.default", Slot(0)), b.emit(aten("abs.default", Slot(0)), neg(b, x)))),
        rule,
    )
    assert names(after) == ["abs.default"] and matches == {"abs of either": 2}


def test_a_guard_refuses_with_a_sentence() -> None:
    rule = pattern_rule(
        "never", lambda x: call("neg.default", x), lambda to, m: m["x"], no_sample, lambda m, graph: "it is Tuesday"
    )
    _, matches, refusals = run(program(lambda b, x: neg(b, x)), rule)
    assert not matches and refusals == ("never at neg.default: it is Tuesday",)


def join(to: Replacement, match: Match) -> tuple[Value, ...]:
    weights = [to.graph.module.params[match[n].name].value() for n in ("a", "b")]
    joined = to.param(torch.cat(weights), "joined")
    y = to.emit(Linear(), match["x"], joined, None)
    return to.node(aten("split_with_sizes.default", Slot(0), [w.shape[0] for w in weights], -1), y).outputs


JOIN = pattern_rule(
    "join linear maps",
    lambda x, a, b: (op(Linear, x, a, None), op(Linear, x, b, None)),
    join,
    lambda choose: {"x": KIND, "a": torch.randn(4, 4), "b": torch.randn(2, 4)},
    lambda m, graph: None if m["a"] != m["b"] else "it is one weight",
)


def linear(b: Builder, x: Value, name: str, rows: int) -> Value:
    return b.emit(Linear(), x, ParamRef(name, TensorType(F32, (rows, 4))), None)


def test_several_results_at_once() -> None:
    after, matches, _ = run(program(lambda b, x: (linear(b, x, "w", 4), linear(b, x, "v", 2))), JOIN)
    assert matches == {"join linear maps": 1}
    assert names(after) == ["linear", "split_with_sizes.default"] and "joined" in after.params


def test_results_that_are_used_before_all_are_there() -> None:
    """The first map is used before the second is computed: the joined one is built in front of both."""

    def build(b: Builder, x: Value) -> tuple[Value, Value]:
        first = neg(b, linear(b, x, "w", 4))
        return first, linear(b, x, "v", 2)

    after, matches, _ = run(program(build), JOIN)
    assert matches and names(after) == ["linear", "split_with_sizes.default", "neg.default"]


def test_results_of_which_one_needs_the_other_stay() -> None:
    """w(x) and v(w(x) + x - w(x)): joined, they would need their own results."""

    def left(x: Any, y: Any, a: Any, b: Any) -> Any:
        return op(Linear, x, a, None), op(Linear, y, b, None)

    def build(to: Replacement, match: Match) -> tuple[Value, Value]:
        first = to.emit(Linear(), match["x"], match["a"], None)
        return first, to.emit(Linear(), match["y"], match["b"], None)

    rule = pattern_rule("pair", left, build, no_sample, lambda m, graph: None if m["x"] is not m["y"] else "one input")
    module = program(lambda b, x: linear(b, neg(b, linear(b, x, "w", 4)), "v", 2))
    assert names(run(module, rule)[0]) == ["linear", "neg.default", "linear"]


def test_one_result_of_several() -> None:
    def left(x: Any) -> Any:
        return call("neg.default", Result(call("split.Tensor", x, 2, -1), 1))

    rule = pattern_rule(
        "second half",
        left,
        lambda to, m: to.call("slice.Tensor", self=to.call("neg.default", self=m["x"]), dim=-1, start=2, end=4),
        no_sample,
    )
    module = program(lambda b, x: neg(b, b.node(aten("split.Tensor", Slot(0), 2, -1), x).outputs[1]))
    assert run(module, rule)[1] == {"second half": 1}


def test_a_rule_that_never_ends_is_stopped() -> None:
    grow = pattern_rule(
        "grow",
        lambda x: call("abs.default", x),
        lambda to, m: to.call("abs.default", self=to.call("neg.default", self=m["x"])),
        no_sample,
    )
    module = program(lambda b, x: b.emit(aten("abs.default", Slot(0)), x))
    with pytest.raises(PassError, match=r"does not come to an end: after \d+ rewrites grow still apply"):
        rewrite(module, module.functions["forward"], [grow])


def test_a_replacement_of_another_type_is_refused() -> None:
    bad = pattern_rule(
        "bad", lambda x: call("neg.default", x), lambda to, m: to.call("sum.default", self=m["x"]), no_sample
    )
    module = program(lambda b, x: neg(b, x))
    with pytest.raises(PassError, match=r"rule 'bad' replaces f32\[3, 4\] by f32\[\]"):
        rewrite(module, module.functions["forward"], [bad])


def test_unused_parameter_names_are_found() -> None:
    rename = pattern_rule("rename", lambda x: op(Linear, x, None, None), lambda to, m: m["x"], no_sample)
    assert rename.roots == frozenset({"linear"})
    with pytest.raises(IRError, match="takes the arguments self, other, alpha"):
        call("add.Tensor", 1, 2, 3, 4)
    with pytest.raises(PassError, match="must return calls"):
        pattern_rule("no call", lambda x: x, lambda to, m: m["x"], no_sample)


def test_the_text_of_a_pattern_is_its_function() -> None:
    (term,) = trace(lambda x, *, eps: call("add.Tensor", x, eps))
    assert term.overload == "add.Tensor" and term.arguments["other"].attribute and term.arguments["alpha"] == 1
