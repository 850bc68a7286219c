"""The verifier: silent on correct modules, and every fault named with its line."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Function, IRError, Module, Node, TensorType, Value, find_faults, parse_module, verify
from planish.ir.ops import Linear, RmsNorm
from planish.testing.chooser import HypothesisChooser
from planish.testing.corruptions import CORRUPTIONS
from planish.testing.modules import modules
from planish.testing.profiles import share


def refusal(module: Module) -> str:
    """What the verifier says about a module that it refuses."""
    with pytest.raises(IRError) as caught:
        verify(module)
    return str(caught.value)


@share(0.4)
@given(modules())
def test_correct_modules_have_no_fault(module: Module) -> None:
    verify(module)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
@share(0.06)
@given(data=st.data())
def test_each_planted_fault_is_named(name: str, data: st.DataObject) -> None:
    pattern, corrupt = CORRUPTIONS[name]
    module = corrupt(data.draw(modules(size=3, functions=1)), HypothesisChooser(data.draw))
    faults = find_faults(module)
    assert any(re.search(pattern, fault.sentence) for fault in faults), [str(f) for f in faults]
    with pytest.raises(IRError, match=pattern):
        verify(module)


@share(0.3)
@given(data=st.data())
def test_all_faults_are_listed(data: st.DataObject) -> None:
    """Two faults of different kinds, planted one after the other, are both found."""
    names = ["unbound symbol", "type rule", "missing state", "attribute of another type", "encoding that cannot hold"]
    first, second = data.draw(st.permutations(names))[:2]
    module = data.draw(modules(size=3, functions=1))
    choose = HypothesisChooser(data.draw)
    for name in (first, second):
        module = CORRUPTIONS[name][1](module, choose)
    message = refusal(module)
    assert message.startswith("the module has 2 faults:\n")
    assert all(re.search(CORRUPTIONS[name][0], message) for name in (first, second))


HELD = """\
state $cache: f32[B, C, 2, 8] as grouped_int {bits = 8, group = 8, scale_dtype = f16, zero_points = false}
func @forward(%x: f32[B, S, 2, 8], %start: i64[B], %length: i64[B]) -> () {
  %0: f32[B, C, 2, 8] = cache_append($cache, %x, %start, %length) {encoding = GroupedInt(bits = 8, group = 8)}
  %1: f32[B, C, 2, 8] = cache_append(%0, %x, %start, %length) {encoding = GroupedInt(bits = 8, group = 8)}
  %2: f32[B, C, 2, 8] = aten.neg.default(%1)
  return update $cache = %1
}
"""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("($cache, %x, %start, %length) {encoding = GroupedInt(bits = 8, group = 8)}", "($cache, %x, %start, %length)",
         "it appends rows as None to the state 'cache', held as int8g8sf16"),
        ("($cache, %x, %start, %length) {encoding = GroupedInt(bits = 8",
         "($cache, %x, %start, %length) {encoding = GroupedInt(bits = 4", "it appends rows as int4g8sf16 to the state"),
        ("(%0, %x, %start, %length) {encoding = GroupedInt(bits = 8, group = 8)}", "(%0, %x, %start, %length)",
         "the update of state 'cache': it is held as int8g8sf16, so it must be what cache_append"),
        ("$cache = %1", "$cache = %2", "the update of state 'cache': it is held as int8g8sf16"),
        (" as grouped_int {bits = 8, group = 8, scale_dtype = f16, zero_points = false}", "",
         "it appends rows as int8g8sf16 to the state 'cache', held as None"),
        ("as grouped_int {bits = 8, group = 8, scale_dtype = f16, zero_points = false}", 'as float8 {scaled = "tensor"}',
         "float8-tensor has 'scales' for more than one row"),
        ("as grouped_int {bits = 8, group = 8", "as grouped_int {bits = 8, group = 3", "a group of 3 does not divide"),
    ],
)  # fmt: skip
def test_what_a_state_holds_was_rounded_for_it(old: str, new: str, sentence: str) -> None:
    verify(parse_module(HELD))
    assert HELD.count(old) == 1
    assert sentence in refusal(parse_module(HELD.replace(old, new)))


def test_rows_need_a_fixed_size_of_floats() -> None:
    for kind in ("f32[B, C]", "f32[B, C, N]", "i64[B, C, 8]"):
        text = f"state $cache: {kind} as grouped_int {{bits = 8, group = 8, scale_dtype = f16, zero_points = false}}\n"
        assert "holds rows of floats [batch, tokens, ..., size] of a fixed size" in refusal(parse_module(text))


def test_a_fault_shows_source_line_and_caret() -> None:
    x = Value(TensorType(torch.float32, (2, 3)), "x")
    weight = Value(TensorType(torch.float32, (4, 5)), "weight")
    y = Value(TensorType(torch.float32, (2, 4)), "y")
    node = Node(Linear(), (x, weight, None), (y,), "model.py:7 in mlp")
    module = Module({"forward": Function("forward", (x, weight), (node,), (y,), ("y",))})
    assert refusal(module).split("\n") == [
        "the module has one fault:",
        "function 'forward', model.py:7 in mlp: linear: the input has 3 features, the weight f32[4, 5] takes others",
        "    %y: f32[2, 4] = linear(%x, %weight, none)",
        "                    ^^^^^^",
    ]


def test_the_caret_points_at_the_operand() -> None:
    stray = Value(TensorType(torch.float32, (3,)), "stray")
    x = Value(TensorType(torch.float32, (2, 3)), "x")
    node = Node(RmsNorm(1e-5), (x, stray), (y := Value(x.type, "y"),))
    module = Module({"f": Function("f", (x,), (node,), (y,), ("y",))})
    (fault,) = find_faults(module)
    line, caret = fault.excerpt.split("\n")
    assert line[caret.index("^") : caret.rindex("^") + 1] == "%stray"


def test_symbols_of_states_are_bound_where_the_state_is_used() -> None:
    text = """
state $cache: f32[B, C]
func @read(%x: f32[B, 2]) -> (y: f32[B, C]) {
  %y: f32[B, C] = aten.expand.default($cache, (B, C))
  return %y
}
func @no_use(%x: f32[B, 1]) -> (y: f32[B, C]) {
  %y: f32[B, C] = aten.expand.default(%x, (B, C))
  return %y
}
"""
    (fault,) = find_faults(parse_module(text))
    assert fault.where == "function 'no_use'"
    assert "no state that the function uses has the symbol C" in fault.sentence


def test_what_is_unused_is_legal() -> None:
    text = """
state $never: f32[B, Z]
param @never: f32[2] as dense {dtype = f32}
func @f(%x: f32[B], %y: f32[S]) -> (z: f32[B]) {
  %unused: f32[S] = aten.neg.default(%y)
  return %x
}
"""
    verify(parse_module(text))
    verify(Module({}))
