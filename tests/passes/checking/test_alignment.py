"""Regions: what two functions share is found by structure, what they do not share is cut out as small as can be."""

from __future__ import annotations

import torch

from planish.ir import Builder, Function, Module, Operand, ParamRef, Rewriter, TensorType, Value, dense_param, symbol
from planish.ir.ops import Slot, aten
from planish.ir.text import parse_module, print_module
from planish.passes.checking.alignment import Alignment, Region
from planish.testing.tiny_decoder import tiny_decoder

KIND = TensorType(torch.float32, (symbol("B"), 4))


def neg(b: Builder, x: Operand) -> Value:
    return b.emit(aten("neg.default", Slot(0)), x)


def chain(length: int) -> Module:
    """x, negated so often."""
    b = Builder("forward")
    x: Operand = b.input("x", KIND)
    for _ in range(length):
        x = neg(b, x)
    return Module({"forward": b.finish([x], ["y"])})


def align(before: Module, after: Module, claims: dict[Value, Operand] | None = None) -> list[Region]:
    a, b = before.functions["forward"], after.functions["forward"]
    return Alignment(before, after, a, b, claims or {}).regions()


def replaced(module: Module, index: int, overload: str) -> tuple[Module, dict[Value, Operand]]:
    """The module with the overload of one node changed."""
    function = module.functions["forward"]
    rewriter = Rewriter(function)
    for number, node in enumerate(function.nodes):
        if number == index:
            new = rewriter.emit(aten(overload, Slot(0)), *(o for o in rewriter.operands(node) if o is not None))
            rewriter.replace(node.output, new)
        else:
            rewriter.keep(node)
    return module.with_function(rewriter.finish_like()), rewriter.correspondence


def test_equal_functions_have_no_regions() -> None:
    module = tiny_decoder()
    assert align(module, module) == []
    reread = parse_module(print_module(module), module.params)
    assert align(module, reread) == [], "also when no value is shared"


def test_a_replaced_node_is_one_region() -> None:
    module = chain(5)
    after, claims = replaced(module, 2, "abs.default")
    (region,) = align(module, after, claims)
    nodes = module.functions["forward"].nodes
    assert region.source_nodes == (nodes[2],) and len(region.result_nodes) == 1
    assert list(region.cut) == [nodes[1].output] and region.last is nodes[2]


def test_without_a_word_from_the_pass_the_region_reaches_the_results() -> None:
    module = chain(5)
    after, _ = replaced(module, 2, "abs.default")
    (region,) = align(module, after)
    assert len(region.source_nodes) == len(region.result_nodes) == 3


def test_several_replacements_are_several_regions() -> None:
    module = chain(6)
    once, first = replaced(module, 1, "abs.default")
    twice, second = replaced(once, 4, "abs.default")
    claims = {old: second[new] for old, new in first.items() if isinstance(new, Value) and new in second}
    regions = align(module, twice, claims)
    assert [len(r.source_nodes) for r in regions] == [1, 1]


def test_a_value_that_stands_for_another_one() -> None:
    """A copy taken away: nothing of the result is new, but its reader now reads what the copy copied."""
    b = Builder("forward")
    x = b.input("x", KIND)
    inner = neg(b, x)
    copy = b.emit(aten("clone.default", Slot(0)), inner)
    module = Module({"forward": b.finish([neg(b, copy)], ["y"])})
    function = module.functions["forward"]
    rewriter = Rewriter(function)
    rewriter.keep(function.nodes[0])
    rewriter.replace(copy, inner)
    rewriter.keep(function.nodes[2])
    (region,) = align(module, module.with_function(rewriter.finish_like()), rewriter.correspondence)
    assert region.source_nodes == (function.nodes[1],) and region.result_nodes == () and inner in region.cut


def test_merged_repetitions_are_equal_by_structure() -> None:
    b = Builder("forward")
    x = b.input("x", KIND)
    y = b.emit(aten("add.Tensor", Slot(0), Slot(1)), neg(b, x), neg(b, x))
    module = Module({"forward": b.finish([y], ["y"])})
    c = Builder("forward")
    c.inputs = [x]
    once = neg(c, x)
    after = module.with_function(c.finish([c.emit(aten("add.Tensor", Slot(0), Slot(1)), once, once)], ["y"]))
    assert len(after.functions["forward"].nodes) == 2 and align(module, after) == []


def test_a_changed_parameter_is_not_the_same() -> None:
    def module(values: torch.Tensor) -> Module:
        b = Builder("forward")
        x = b.input("x", KIND)
        w = ParamRef("w", TensorType(torch.float32, (4,)))
        y = b.emit(aten("mul.Tensor", Slot(0), Slot(1)), neg(b, x), w)
        return Module({"forward": b.finish([y], ["y"])}, {"w": dense_param("w", values)})

    values = torch.randn(4)
    assert align(module(values), module(values.clone())) == [], "equal bytes are the same parameter"
    (region,) = align(module(values), module(values + 1))
    assert len(region.source_nodes) == 1


def test_outputs_that_are_inputs_or_parameters() -> None:
    b = Builder("forward")
    x = b.input("x", KIND)
    module = Module({"forward": b.finish([neg(b, neg(b, x))], ["y"])})
    direct = module.with_function(Function("forward", (x,), (), (x,), ("y",)))
    (region,) = align(module, direct)
    assert len(region.source_nodes) == 2 and region.result_nodes == () and list(region.cut) == [x]


def test_what_takes_the_place_but_differs_is_no_cut() -> None:
    """A scaled value, and a reader that undoes the scaling: one region around both."""
    module = chain(3)
    function = module.functions["forward"]
    rewriter = Rewriter(function)
    rewriter.keep(function.nodes[0])
    doubled = rewriter.emit(aten("mul.Scalar", Slot(0), -2.0), function.nodes[0].output)
    rewriter.replace(function.nodes[1].output, doubled, same=False)
    halved = rewriter.emit(aten("mul.Scalar", Slot(0), -0.5), doubled)
    rewriter.replace(function.nodes[2].output, halved)
    assert function.nodes[1].output not in rewriter.correspondence
    (region,) = align(module, module.with_function(rewriter.finish_like()), rewriter.correspondence)
    assert len(region.source_nodes) == 2 and len(region.result_nodes) == 2


def test_one_joined_node_is_evaluated_once() -> None:
    """Two values that one new node makes share a region."""
    module = chain(1)
    b = Builder("forward")
    x = b.input("x", KIND)
    left, right = neg(b, x), b.emit(aten("abs.default", Slot(0)), x)
    module = Module({"forward": b.finish([left, right], ["a", "b"])})
    c = Builder("forward")
    c.inputs = [x]
    both = c.emit(aten("stack.default", (Slot(0), Slot(1)), 0), neg(c, x), c.emit(aten("relu.default", Slot(0)), x))
    parts = c.node(aten("unbind.int", Slot(0), 0), both).outputs
    after = module.with_function(c.finish(parts, ["a", "b"]))
    (region,) = align(module, after, {left: parts[0], right: parts[1]})
    assert len(region.pairs) == 2
