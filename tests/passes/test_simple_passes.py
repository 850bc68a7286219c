"""Dead code, common subexpressions, constant folding and canonical form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import (
    Builder,
    Interpreter,
    Module,
    ParamRef,
    State,
    StateRef,
    TensorType,
    Value,
    dense_param,
    symbol,
    verify,
)
from planish.ir.ops import Slot, aten
from planish.ir.types import DTYPES
from planish.passes.canonical.support import call_module
from planish.passes.canonicalise import Canonicalise
from planish.passes.common_subexpressions import CommonSubexpressions
from planish.passes.dead_code import DeadCode
from planish.passes.fold_constants import FoldConstants
from planish.passes.pass_base import Context, Pass, PassResult
from planish.testing.modules import modules
from planish.testing.profiles import share
from planish.testing.rules import probe_tensor
from planish.testing.tensors import calls

F32 = torch.float32
ONE = aten("neg.default", Slot(0))


def apply(step: Pass, module: Module) -> PassResult:
    result = step.apply(module, Context())
    verify(result.module)
    return result


def overloads(module: Module, function: str = "forward") -> list[str]:
    return [n.op.attributes().get("overload", n.op.name) for n in module.functions[function].nodes]


def module_of(builder: Builder, outputs: list[Any], *params: tuple[str, torch.Tensor]) -> Module:
    function = builder.finish(outputs, [f"y{n}" for n in range(len(outputs))])
    return Module({"forward": function}, {n: dense_param(n, t) for n, t in params})


@pytest.mark.parametrize("step", [Canonicalise(), CommonSubexpressions(), DeadCode(), FoldConstants()])
@share(0.2)
@given(data=st.data())
def test_same_bits_and_a_fixpoint(step: Pass, data: st.DataObject) -> None:
    """On integers every bit stays; a second run finds nothing."""
    module = data.draw(modules(exact=True, size=6, functions=2))
    after = apply(step, module).module
    for name in module.functions:
        inputs, states = data.draw(calls(module, name))
        before, now = (Interpreter(m, promote=True).run(name, inputs, states) for m in (module, after))
        assert all(torch.equal(a, b) for a, b in zip(before.outputs.values(), now.outputs.values()))
        assert all(torch.equal(before.states[s], now.states[s]) for s in now.states)
    again = apply(step, after)
    assert again.matches == 0 and again.module is after


def test_dead_code() -> None:
    b = Builder("forward")
    x = b.input("x", TensorType(F32, (3,)))
    y = b.emit(ONE, x)
    b.emit(aten("add.Tensor", Slot(0), Slot(1)), b.emit(ONE, y), ParamRef("unused", TensorType(F32, (3,))))
    module = module_of(b, [y], ("unused", torch.ones(3)), ("kept", torch.ones(1)))
    result = apply(DeadCode(), module)
    assert overloads(result.module) == ["neg.default"] and not result.module.params
    assert dict(result.details) == {"nodes": 2, "parameters": 2, "states": 0} and result.matches == 4
    assert len(module.functions["forward"].nodes) == 3, "the input changed"


def test_dead_code_keeps_what_updates_a_state() -> None:
    b = Builder("forward")
    x = b.input("x", TensorType(F32, (3,)))
    total = b.emit(aten("add.Tensor", Slot(0), Slot(1)), x, StateRef("sum", TensorType(F32, (3,))))
    function = b.finish([x], ["y"], {"sum": total})
    states = {n: State(n, TensorType(F32, (3,))) for n in ("sum", "other")}
    result = apply(DeadCode(), Module({"forward": function}, {}, states))
    assert overloads(result.module) == ["add.Tensor"] and set(result.module.states) == {"sum"}


def test_common_subexpressions_of_common_subexpressions() -> None:
    b = Builder("forward")
    x = b.input("x", TensorType(F32, (3,)))
    twice = [b.emit(ONE, b.emit(ONE, x)) for _ in range(3)]
    y = b.emit(aten("add.Tensor", Slot(0), Slot(1)), twice[0], twice[2])
    result = apply(CommonSubexpressions(), module_of(b, [y, twice[1]]))
    assert overloads(result.module) == ["neg.default", "neg.default", "add.Tensor"] and result.matches == 4


@pytest.mark.parametrize(("a", "c"), [(1, 1.0), (0.0, -0.0), (True, 1), (1.0, float("nan"))])
def test_attributes_that_only_look_equal_stay_apart(a: Any, c: Any) -> None:
    b = Builder("forward")
    x = b.input("x", TensorType(torch.int64, (3,)))
    results = [b.emit(aten("mul.Tensor", Slot(0), value), x) for value in (a, c, a)]
    result = apply(CommonSubexpressions(), module_of(b, results))
    assert len(result.module.functions["forward"].nodes) == 2 and result.matches == 1


def test_random_numbers_are_drawn_each_time() -> None:
    b = Builder("forward")
    b.input("x", TensorType(F32, (3,)))
    results = [b.emit(aten("rand.default", (3,))) for _ in range(2)]
    module = module_of(b, [b.emit(ONE, r) for r in results])
    assert apply(CommonSubexpressions(), module).matches == 0
    assert apply(FoldConstants(), module).matches == 0


def test_constants_are_folded_when_read() -> None:
    b = Builder("forward")
    x, w = b.input("x", TensorType(F32, (symbol("B"), 4))), ParamRef("w", TensorType(F32, (4,)))
    scale = b.emit(aten("exp.default", Slot(0)), b.emit(ONE, w))
    y = b.emit(aten("mul.Tensor", Slot(0), Slot(1)), x, scale)
    values = torch.randn(4)
    module = module_of(b, [y], ("w", values))
    result = apply(FoldConstants(), module)
    assert overloads(result.module) == ["mul.Tensor"] and result.matches == 1
    (folded,) = (p for n, p in result.module.params.items() if n != "w")
    assert torch.equal(folded.value(), (-values).exp())
    assert torch.equal(folded.wide_value(), (-values.double()).exp()), "in float64 it is folded in float64"
    assert set(apply(DeadCode(), result.module).module.params) == {folded.name}


def test_large_results_and_symbolic_shapes_are_not_folded() -> None:
    b = Builder("forward")
    x, w = b.input("x", TensorType(F32, (symbol("B"), 1000, 4))), ParamRef("w", TensorType(F32, (1, 4)))
    grown = b.emit(ONE, b.emit(aten("expand.default", Slot(0), (1000, 4)), w))
    y = b.emit(aten("add.Tensor", Slot(0), Slot(1)), x, grown)
    z = b.emit(aten("add.Tensor", Slot(0), Slot(1)), y, b.emit(aten("ones.default", (symbol("B"), 1, 1))))
    module = module_of(b, [z], ("w", torch.randn(1, 4)))
    assert apply(FoldConstants(limit_bytes=100), module).matches == 0
    assert apply(FoldConstants(), module).matches == 1
    same_size = Builder("forward")
    x = same_size.input("x", TensorType(F32, (4, 4)))
    turned = same_size.emit(aten("t.default", Slot(0)), ParamRef("w", TensorType(F32, (4, 4))))
    module = module_of(
        same_size, [same_size.emit(aten("mm.default", Slot(0), Slot(1)), x, turned)], ("w", torch.randn(4, 4))
    )
    assert apply(FoldConstants(limit_bytes=1), module).matches == 1, "no larger than what it is computed from"


def test_names_of_folded_parameters_are_new() -> None:
    b = Builder("forward")
    x, w = b.input("x", TensorType(F32, (4,))), ParamRef("forward.folded.1", TensorType(F32, (4,)))
    for op in ("exp.default", "neg.default", "abs.default"):
        x = b.emit(aten("mul.Tensor", Slot(0), Slot(1)), x, b.emit(aten(op, Slot(0)), w))
    result = apply(FoldConstants(), module_of(b, [x], ("forward.folded.1", torch.randn(4))))
    assert set(result.module.params) == {f"forward.folded.{n}" for n in range(4)}


def exact_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """NaN meets NaN, and zeros have the same sign."""
    return bool((((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize(
    ("kept", "overload", "arguments"),
    [
        (True, "add.Tensor", {"other": -0.0}), (True, "sub.Tensor", {"other": 0.0}), (True, "mul.Tensor", {"other": 1}),
        (True, "div.Tensor", {"other": 1.0}), (True, "pow.Tensor_Scalar", {"exponent": 1}), (True, "clone.default", {}),
        (True, "sub.Tensor", {"other": -0.0, "alpha": -1}),
        (False, "add.Tensor", {"other": 0.0}), (False, "add.Tensor", {"other": 0}), (False, "sub.Tensor", {"other": -0.0}),
        (False, "mul.Tensor", {"other": -1.0}), (False, "add.Tensor", {"other": -0.0, "alpha": -1}),
        (False, "mul.Tensor", {"other": 0.0}),
    ],
)  # fmt: skip
def test_special_values(kept: bool, overload: str, arguments: dict[str, Any]) -> None:
    """Nothing is dropped that changes NaN, an infinity or the sign of a zero, and what keeps all of them is dropped."""
    values = probe_tensor(F32)
    module = call_module(overload, TensorType(F32, tuple(values.shape)), arguments)
    result = apply(Canonicalise(), module)
    assert exact_same(*(Interpreter(m).run("forward", [values])[0] for m in (module, result.module)))
    assert bool(result.matches) == kept


def test_a_refusal_says_why() -> None:
    result = apply(Canonicalise(), call_module("add.Tensor", TensorType(F32, (3,)), {"other": 0.0}))
    assert result.refusals == ("plus zero at add.Tensor: adding 0.0 turns -0.0 into 0.0",)


@pytest.mark.parametrize(
    ("first", "second", "third", "left"),
    [
        ("bf16", "f32", "bf16", 0), ("f32", "bf16", "f32", 2), ("f16", "f32", "f64", 1), ("f32", "f32", "f32", 0),
        ("i8", "i64", "i8", 0), ("i64", "f32", "i64", 2), ("f16", "bf16", "f16", 2), ("bool", "f32", "bool", 0),
        ("i8", "i64", "u8", 2),
    ],
)  # fmt: skip
def test_casts(first: str, second: str, third: str, left: int) -> None:
    """A first cast that loses nothing goes; one that rounds is rounding on purpose."""
    b = Builder("forward")
    x: Value = b.input("x", TensorType(DTYPES[first], (5,)))
    for name in (second, third):
        x = b.emit(aten("_to_copy.default", Slot(0), dtype=DTYPES[name]), x)
    result = apply(Canonicalise(), module_of(b, [x]))
    assert len(result.module.functions["forward"].nodes) == left


def test_views_and_permutations_become_one() -> None:
    b = Builder("forward")
    batch = symbol("B")
    x = b.input("x", TensorType(F32, (batch, 6, 4)))
    y = b.emit(aten("view.default", Slot(0), (batch, 24)), x)
    y = b.emit(aten("view.default", Slot(0), (batch, 4, 6)), y)
    y = b.emit(aten("transpose.int", Slot(0), 1, 2), y)
    y = b.emit(aten("permute.default", Slot(0), (2, 0, 1)), y)
    y = b.emit(aten("permute.default", Slot(0), (1, 2, 0)), y)
    result = apply(Canonicalise(), module_of(b, [y]))
    assert overloads(result.module) == ["reshape.default", "permute.default"]
    inputs = [torch.randn(3, 6, 4)]
    assert torch.equal(*(Interpreter(m).run("forward", inputs)[0] for m in (module_of(b, [y]), result.module)))
