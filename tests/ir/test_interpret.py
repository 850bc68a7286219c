"""The interpreter against a plain loop, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import (
    Builder,
    Interpreter,
    IRError,
    Module,
    Node,
    ParamRef,
    State,
    StateRef,
    TensorType,
    Value,
    dense_param,
    parse_module,
    symbol,
)  # fmt: skip
from planish.ir.ops import Linear, Slot, aten
from planish.ir.types import bind_shape
from planish.testing.modules import modules
from planish.testing.profiles import share
from planish.testing.tensors import calls

B = symbol("B")


def plain_loop(
    module: Module, name: str, inputs: dict[str, torch.Tensor], states: dict[str, torch.Tensor]
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The meaning of a function in ten lines: nothing is promoted, freed or checked."""
    function, sizes = module.functions[name], dict[str, int]()
    values: dict[Any, torch.Tensor] = {v: inputs[v.name] for v in function.inputs}
    for v in function.inputs:
        bind_shape(v.type, values[v].shape, sizes, v.name)
    for key, tensor in states.items():
        bind_shape(module.states[key].type, tensor.shape, sizes, key)

    def read(operand: Any) -> Any:
        if isinstance(operand, ParamRef):
            return module.params[operand.name].value()
        return states[operand.name] if isinstance(operand, StateRef) else values.get(operand)

    for node in function.nodes:
        values.update(zip(node.outputs, node.op.bind(sizes).evaluate(*map(read, node.inputs))))
    return [read(o) for o in function.outputs], {**states, **{k: read(o) for k, o in function.updates.items()}}


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


@share(0.25)
@given(data=st.data())
def test_running_is_evaluating_node_by_node(data: st.DataObject) -> None:
    """Also checks every declared type, symbolic ones included, against the computed one."""
    module = data.draw(modules())
    for name, function in module.functions.items():
        inputs, states = data.draw(calls(module, name))
        seen: list[Node] = []
        result = Interpreter(module, observe=lambda node, _: seen.append(node)).run(name, inputs, states)  # noqa: B023
        outputs, after = plain_loop(module, name, inputs, states)
        assert tuple(result.outputs) == function.output_names
        assert all(equal(a, b) for a, b in zip(result.outputs.values(), outputs, strict=True))
        assert result.states.keys() == after.keys()
        assert all(equal(result.states[k], after[k]) for k in after)
        assert seen == list(function.nodes)


@share(0.15)
@given(data=st.data())
def test_promotion_leaves_exact_arithmetic_as_it_is(data: st.DataObject) -> None:
    module = data.draw(modules(exact=True, dtype=torch.float64))
    inputs, states = data.draw(calls(module, "forward"))
    plain = Interpreter(module).run("forward", inputs, states)
    promoted = Interpreter(module, promote=True).run("forward", inputs, states)
    assert all(equal(a, b) for a, b in zip(plain.outputs.values(), promoted.outputs.values(), strict=True))


@share(0.15)
@given(data=st.data())
def test_promotion_computes_everything_in_float64(data: st.DataObject) -> None:
    module = data.draw(modules(dtype=torch.float32))
    inputs, states = data.draw(calls(module, "forward"))
    dtypes: set[torch.dtype] = set()
    interpreter = Interpreter(
        module, promote=True, observe=lambda node, results: dtypes.update(r.dtype for r in results)
    )
    interpreter.run("forward", inputs, states)
    assert not dtypes & {torch.float32, torch.float16, torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def simple() -> Module:
    weight, state = dense_param("w", torch.eye(2)), State("s", TensorType(torch.float32, (B, 2)))
    b = Builder("f")
    x = b.input("x", TensorType(torch.float32, (B, 2)))
    y = b.emit(Linear(), x, ParamRef("w", weight.type), None)
    z = b.emit(aten("add.Tensor", Slot(0), Slot(1)), y, StateRef("s", state.type))
    return Module({"f": b.finish([z], ["z"], {"s": z})}, {"w": weight}, {"s": state})


def test_states_start_as_zeros_and_are_carried() -> None:
    run = Interpreter(simple())
    x = torch.ones(3, 2)
    first = run.run("f", [x])
    second = run.run("f", {"x": x}, first.states)
    assert torch.equal(first[0], x) and torch.equal(second[0], 2 * x)
    assert torch.equal(second.states["s"], 2 * x)


@pytest.mark.parametrize(
    "name, inputs, message",
    [
        ("g", [torch.ones(1, 2)], "the module has no function 'g'; it has f"),
        ("f", [], r"takes 1 inputs \(x\), got 0"),
        ("f", {"y": torch.ones(1, 2)}, r"takes inputs \['x'\], got \['y'\]"),
        ("f", [torch.ones(1, 3)], "axis 1 differs"),
        ("f", [torch.ones(1, 2).double()], "input 'x' is torch.float64, but f32"),
    ],
)
def test_calls_that_do_not_fit_are_refused(name: str, inputs: Any, message: str) -> None:
    with pytest.raises(IRError, match=message):
        Interpreter(simple()).run(name, inputs)


def test_a_state_that_does_not_fit_is_refused() -> None:
    with pytest.raises(IRError, match="state 's' has shape"):
        Interpreter(simple()).run("f", [torch.ones(1, 2)], {"s": torch.ones(2, 2)})


def test_a_declared_type_that_is_not_computed_is_named() -> None:
    b = Builder("f")
    x = b.input("x", TensorType(torch.float32, (B, 2)))
    wrong = Node(aten("neg.default", Slot(0)), (x,), (Value(TensorType(torch.float32, (B, 3))),), "model.py:5")
    b.nodes.append(wrong)
    with pytest.raises(IRError, match=r"aten \(model.py:5\) computed .*\[4, 2\], but f32\[B, 3\] was declared"):
        Interpreter(Module({"f": b.finish([x], ["y"])})).run("f", [torch.ones(4, 2)])


def test_symbols_that_no_input_binds_can_be_given() -> None:
    text = """
func @f(%x: f32[B]) -> (y: i64[B, Z]) {
  %y: i64[B, Z] = positions(none, none) {batch = B, length = Z}
  return %y
}
"""
    module = parse_module(text)
    assert Interpreter(module).run("f", [torch.ones(2)], bindings={"Z": 3})[0].shape == (2, 3)
    with pytest.raises(IRError, match="no value is known for Z"):
        Interpreter(module).run("f", [torch.ones(2)])
