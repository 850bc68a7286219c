"""Building and rewriting functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from planish.ir import (
    Builder,
    Function,
    IRError,
    Module,
    Rewriter,
    TensorType,
    Value,
    dense_param,
    parse_module,
    structural_hash,
    symbol,
    verify,
)  # fmt: skip
from planish.ir.ops import Linear, QuantizeActivation, RmsNorm, Slot, aten
from planish.testing.modules import modules
from planish.testing.profiles import share

X = TensorType(torch.float32, (symbol("B"), 4))


def test_types_come_from_the_type_rule() -> None:
    b = Builder("f")
    codes, scale = b.node(QuantizeActivation(), b.input("x", X), names=("codes",)).outputs
    assert (codes.name, scale.name) == ("codes", "")
    assert (codes.type, scale.type) == (X.with_dtype(torch.int8), X.with_shape((symbol("B"), 1)))


def test_what_does_not_fit_is_refused_at_once() -> None:
    b = Builder("f")
    x = b.input("x", X)
    with pytest.raises(IRError, match="linear takes 3 operands"):
        b.emit(Linear(), x)
    with pytest.raises(IRError, match="linear needs its operand 'weight'"):
        b.emit(Linear(), x, None, None)
    with pytest.raises(IRError, match=r"aten.matmul.default does not accept these operands|size of tensor|mat1"):
        b.emit(aten("matmul.default", Slot(0), Slot(1)), x, x)
    with pytest.raises(IRError, match=r"no operator aten\.nonsense"):
        b.emit(aten("nonsense.default", Slot(0)), x)
    with pytest.raises(IRError, match="not a functional operator"):
        b.emit(aten("add_.Tensor", Slot(0), Slot(1)), x, x)
    with pytest.raises(IRError, match=r"mentions operands \[0, 2\], got 2"):
        b.emit(aten("add.Tensor", Slot(0), Slot(2)), x, x)
    with pytest.raises(IRError, match="has 2 results, not one"):
        b.emit(QuantizeActivation(), x)
    with pytest.raises(IRError, match="has 2 outputs but names 1"):
        b.finish([x, x], ["y"])
    with pytest.raises(IRError, match="the module has no parameter 'w'"):
        Module({}).param_ref("w")


@share(0.12)
@given(modules())
def test_keeping_every_node_keeps_the_function(module: Module) -> None:
    for function in module.functions.values():
        rewriter = Rewriter(function)
        kept = [rewriter.keep(node) for node in function.nodes]
        assert all(a is b for a, b in zip(kept, function.nodes)), "unchanged nodes are shared"
        assert structural_hash(rewriter.finish_like()) == structural_hash(function)


@share(0.12)
@given(modules())
def test_users_and_producers_agree_with_the_operands(module: Module) -> None:
    for function in module.functions.values():
        producers, users = function.producers(), function.users()
        for node in function.nodes:
            assert all(producers[v] is node for v in node.outputs)
            assert all(node in users[i] for i in node.inputs if isinstance(i, Value))
        assert sum(map(len, users.values())) == sum(
            len({i for i in n.inputs if isinstance(i, Value)}) for n in function.nodes
        )


TEXT = """
func @f(%x: f32[B, 4]) -> (y: f32[B, 4]) {
  %a: f32[B, 4] = aten.neg.default(%x)
  %b: f32[B, 4] = aten.neg.default(%a)
  %c: f32[B, 4] = aten.add.Tensor(%b, %a)
  return %c
}
"""


def rewrite_negations(function: Function) -> Function:
    """Minus minus x is x."""
    rewriter = Rewriter(function)
    first, second, last = function.nodes
    rewriter.keep(first)
    rewriter.replace(second.output, function.inputs[0])
    rewriter.keep(last)
    return rewriter.finish_like()


def test_replacing_a_value_redirects_its_readers() -> None:
    module = parse_module(TEXT)
    new = rewrite_negations(module.functions["f"])
    changed = module.with_function(new)
    verify(changed)
    verify(module)
    assert new.nodes[-1].inputs == (new.inputs[0], new.nodes[0].output)
    assert module.functions["f"].nodes[0] is new.nodes[0]


def test_a_change_of_type_reaches_what_is_kept() -> None:
    function = parse_module(TEXT).functions["f"]
    rewriter = Rewriter(function)
    first, second, last = function.nodes
    rewriter.keep(first)
    rewriter.keep(second)
    wide = rewriter.emit(aten("to.dtype", Slot(0), torch.float64), rewriter.operand(second.output))
    rewriter.replace(second.output, wide)
    assert rewriter.keep(last).output.type == X.with_dtype(torch.float64)
    verify(Module({"f": rewriter.finish_like()}))


def test_reading_what_was_dropped_is_refused() -> None:
    function = parse_module(TEXT).functions["f"]
    rewriter = Rewriter(function)
    rewriter.keep(function.nodes[0])
    with pytest.raises(IRError, match="neither kept nor replaced"):
        rewriter.keep(function.nodes[2])


def test_modules_are_values() -> None:
    module = Module({}, {"w": dense_param("w", torch.ones(2))})
    wider = module.with_params([dense_param("v", torch.ones(3))])
    assert set(module.params) == {"w"} and set(wider.params) == {"v", "w"}
    with pytest.raises(TypeError):
        module.params["x"] = wider.params["v"]  # type: ignore[index]
    b = Builder("f")
    b.emit(RmsNorm(1e-5), x := b.input("x", X), None)
    assert set(module.with_function(b.finish([x], ["y"])).functions) == {"f"}
