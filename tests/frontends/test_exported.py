"""Exported programs become modules in one form, and everything that cannot is listed with its line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from planish.frontends import import_exported
from planish.frontends.functional import functional
from planish.frontends.tracing import export
from planish.ir import Function, Interpreter, Module, UnsupportedError
from planish.ir.ops import Aten, Slot

X = torch.arange(24, dtype=torch.float32).view(4, 6) / 7 - 1


class Calls(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, function: Any, **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def traced(
    function: Any, x: torch.Tensor = X, dynamic: bool = True, **buffers: torch.Tensor
) -> torch.export.ExportedProgram:
    shapes = {"x": {0: Dim("B")}} if dynamic else None
    return export(Calls(function, **buffers).eval(), (x,), dynamic_shapes=shapes)


def imported(function: Any, x: torch.Tensor = X, dynamic: bool = True, **buffers: torch.Tensor) -> Module:
    shapes = {"x": {0: Dim("B")}} if dynamic else None
    module = import_exported(traced(function, x, dynamic, **buffers), dynamic_shapes=shapes)
    expected = function(Calls(function, **buffers), x)
    for want, got in zip(_leaves(expected), Interpreter(module).run("forward", [x]).outputs.values()):
        assert torch.equal(got, want)
    return module


def _leaves(value: Any) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(value)


def calls(module: Module) -> list[str]:
    """The operations of a module's forward, each as "overload(arguments)"."""
    return [_call(node.op) for node in _forward(module).nodes]


def _call(op: Any) -> str:
    if not isinstance(op, Aten):
        return str(op.name)
    given = [_argument(a) for a in op.arguments] + [f"{k}={_argument(v)}" for k, v in op.keywords]
    return f"{op.overload}({', '.join(given)})"


def _argument(value: Any) -> str:
    if isinstance(value, Slot):
        return f"%{value.index}"
    return f"[{', '.join(map(_argument, value))}]" if isinstance(value, tuple) else str(value)


def _forward(module: Module) -> Function:
    return module.functions["forward"]


NORMAL = [
    (lambda m, x: x.view(-1, 2, 3).relu(), ["reshape.default(%0, [B, 2, 3])", "relu.default(%0)"]),
    (lambda m, x: x.t().reshape(-1), ["transpose.int(%0, 0, 1)", "reshape.default(%0, [6*B])"]),
    (lambda m, x: x.unflatten(1, (2, 3)).flatten(1), ["reshape.default(%0, [B, 2, 3])", "reshape.default(%0, [B, 6])"]),
    (lambda m, x: x.contiguous().clone().detach().view_as(x)[:].expand(-1, 6).float().neg(), ["neg.default(%0)"]),
    (lambda m, x: x.to(torch.float64), ["_to_copy.default(%0, dtype=torch.float64)"]),
    (lambda m, x: x.type_as(x > 0), ["gt.Scalar(%0, 0)", "_to_copy.default(%0, dtype=torch.bool)"]),
    (lambda m, x: x[..., 2:], ["slice.Tensor(%0, 1, 2, 6)"]),
    (lambda m, x: x[:, -2:], ["slice.Tensor(%0, 1, 4, 6)"]),
    (lambda m, x: x[:, 1:-1:2], ["slice.Tensor(%0, 1, 1, 5, 2)"]),
    (lambda m, x: torch.cat([x, x])[: x.shape[0]], ["cat.default([%0, %1])", "slice.Tensor(%0, 0, 0, B)"]),
    (lambda m, x: x.chunk(4, -1), ["split.Tensor(%0, 2, 1)"]),
    (lambda m, x: x.split([1, 5], -1), ["split_with_sizes.default(%0, [1, 5], 1)"]),
    (lambda m, x: torch.arange(0, x.shape[0]), ["arange.default(B)"]),
    (lambda m, x: torch.arange(-1, x.shape[0]), ["arange.start(-1, B)"]),
    (lambda m, x: x.new_zeros(x.shape[0], 2), ["zeros.default([B, 2], dtype=torch.float32)"]),
    (lambda m, x: x.new_full((3,), 2), ["full.default([3], 2, dtype=torch.float32)"]),
    (lambda m, x: (x > 0) & (x < 1), ["gt.Scalar(%0, 0)", "lt.Scalar(%0, 1)", "bitwise_and.Tensor(%0, %1)"]),
    (lambda m, x: torch.addmm(x[:, :1], x, x.t(), alpha=2.0), None),
    (lambda m, x: F.dropout(x, 0.5, training=False).relu(), ["relu.default(%0)"]),
    (lambda m, x: x.softmax(-1, dtype=torch.float32), ["softmax.int(%0, 1)"]),
    (lambda m, x: F.layer_norm(x, (6,)), ["layer_norm.default(%0, [6], None, None, 1e-05)"]),
    (lambda m, x: F.embedding(x.long().clamp(0, 1), torch.ones(2, 3), padding_idx=0), None),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NORMAL)))
def test_normal_forms(number: int) -> None:
    function, expected = NORMAL[number]
    got = calls(imported(function))
    if expected is not None:
        assert got == [e.replace("softmax.int(%0, 1)", "softmax.int(%0, -1)") for e in expected]


def test_fused_products_are_products_and_sums() -> None:
    x = torch.arange(6.0).view(2, 3)
    program = imported(lambda m, x: torch.addmm(m.b, x, m.w, beta=3, alpha=2), x, b=torch.ones(4), w=torch.ones(3, 4))
    assert calls(program) == ["mm.default(%0, %1)", "mul.Tensor(%0, 2)", "mul.Tensor(%0, 3)", "add.Tensor(%0, %1)"]
    x = torch.arange(12.0).view(2, 2, 3)
    program = imported(lambda m, x: torch.baddbmm(m.b, x, x.mT), x, b=torch.ones(1, 1, 2))
    assert calls(program) == ["transpose.int(%0, 1, 2)", "bmm.default(%0, %1)", "add.Tensor(%0, %1)"]


def test_table_cut_to_a_symbolic_length_is_picked_by_index() -> None:
    """The trace knows that the length is at most the table's; a longer one must be an error, not a shorter result."""
    shapes = {"x": {1: Dim("S", max=9)}}
    cut = Calls(lambda m, x: m.table[:, : x.shape[1]] + x, table=torch.arange(9.0).view(1, 9))
    module = import_exported(export(cut, (X,), dynamic_shapes=shapes), dynamic_shapes=shapes)
    assert calls(module) == ["arange.default(S)", "index_select.default(%0, 1, %1)", "add.Tensor(%0, %1)"]
    assert torch.equal(Interpreter(module).run("forward", [X[:, :3]])[0], cut(X[:, :3]))
    assert module.metadata["dim_ranges"] == (("S", 1, 9),)
    with pytest.raises((IndexError, RuntimeError)):
        Interpreter(module).run("forward", [torch.ones(4, 10)])


def test_guards_and_unused_results_vanish() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        torch._check(x.shape[0] > 1)
        x.exp()
        torch.ops.aten._assert_tensor_metadata(x, None, None, torch.float32)
        return x.neg()

    module = imported(forward, unused=torch.ones(3))
    assert calls(module) == ["neg.default(%0)"]
    assert not module.params


def test_sources_name_line_and_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Calls(lambda m, x: x.neg())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    (node,) = _forward(import_exported(export(Outer(), (X,)))).nodes
    assert node.source.startswith("test_exported.py:") and node.source.endswith(" in inner")


def test_parameters_are_shared_where_memory_is() -> None:
    table = torch.ones(2, 3)
    module = imported(lambda m, x: (x @ m.a) + (x @ m.b) + m.c.sum(), torch.ones(4, 2), a=table, b=table, c=table[0])
    assert sorted(module.params) == ["a", "c"]


def test_symbols_take_the_names_of_dims_or_of_inputs() -> None:
    program = traced(lambda m, x: x.neg())
    assert str(_forward(import_exported(program)).inputs[0].type) == "f32[x_0, 6]"
    named = import_exported(program, dynamic_shapes={"x": {0: Dim("rows")}})
    assert str(_forward(named).outputs[0].type) == "f32[rows, 6]"


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x).relu_()
        y[:, 0] = y[:, 1].mul_(2)
        return y.add_(1)


def test_in_place_programs_are_made_functional() -> None:
    module = InPlace().eval()
    program = export(module, (X,), dynamic_shapes={"x": {0: Dim("B")}})
    imported_ = import_exported(program, dynamic_shapes={"x": {0: Dim("B")}})
    assert torch.equal(Interpreter(imported_).run("forward", [X])[0], module(X.clone()))
    assert "batch_norm.default(%0, %1, %2, %3, %4, False, 0.1, 1e-05, False)" in calls(imported_)


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(NORMAL)))
def test_functional_programs_need_no_second_trace(number: int) -> None:
    """What is imported as it was exported is what torch's own functional form of it gives."""
    program = traced(NORMAL[number][0])
    assert functional(program) is program
    direct, second = import_exported(program), import_exported(copy.copy(program).run_decompositions({}))
    assert calls(direct) == calls(second)


def refused(function: Any, x: torch.Tensor = X, **buffers: torch.Tensor) -> str:
    with pytest.raises(UnsupportedError) as caught:
        import_exported(traced(function, x, **buffers), dynamic_shapes={"x": {0: Dim("B")}})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_unsupported_is_in_one_error() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        noise = torch.rand(6)
        return x.nonzero(), x + noise, torch.linalg.eigvals(m.square).abs(), x.neg()

    message = refused(forward, square=torch.eye(3))
    assert message.startswith("this program cannot be imported: ")
    for part in ("draws random numbers", "a size depends on the values of a tensor", "complex64"):
        assert part in message
    assert message.count("test_exported.py:") == 3


def test_mutated_buffers_are_refused_by_name() -> None:
    def counting(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.steps.add_(1)
        return x * m.steps

    assert "changes its buffer 'steps' and reads it" in refused(counting, steps=torch.zeros(()))

    def training(m: Any, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, m.mean, m.var, training=True)

    assert "changes its buffer 'mean'" in refused(training, mean=torch.zeros(6), var=torch.ones(6))


def test_a_counter_that_nothing_reads_is_left_out() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.steps.add_(1)
        return x.neg()

    program = traced(forward, steps=torch.zeros(()))
    assert not import_exported(program).params


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda m, x: x.mul_(2), "changes its input 'x' in place"),
        (lambda m, x: torch.cond(x.sum() > 0, torch.neg, torch.exp, (x,)), "control flow"),
        (lambda m, x: x * x.max().item(), "a number is read out of a tensor"),
        (lambda m, x: x * (x.shape[0] ** 0.5), "computed from symbolic sizes"),
        (lambda m, x: x.shape[0], "is not a tensor"),
        (lambda m, x: F.dropout(x), "draws random numbers"),
        (lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "draws random numbers"),
        (lambda m, x: torch.ops.frontend_test.twice(x), "the operator frontend_test.twice.default is unknown"),
        (lambda m, x: (x + 1j).real, "complex64 is not held by the IR"),
    ],
)
def test_refusals(function: Any, sentence: str) -> None:
    message = refused(function)
    assert sentence in message


@torch.library.custom_op("frontend_test::twice", mutates_args=())
def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@_twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda m, x: x if x.sum() > 0 else -x, "known only when it runs"),
        (lambda m, x: x.view(5, 5), "is invalid for input of size"),
        (lambda m, x: x + torch.ones(4)[:, None], "specialized it to be a constant (4)"),
    ],
)
def test_programs_that_cannot_be_traced(function: Any, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=r"^Calls cannot be traced") as caught:
        traced(function)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_symbol_needs_an_axis_of_its_own() -> None:
    half = Dim("half")
    program = export(nn.ReLU(), (X,), dynamic_shapes={"input": {0: 2 * half}})
    with pytest.raises(UnsupportedError, match=r"no input has an axis of size half, so that half has no value"):
        import_exported(program, dynamic_shapes={"input": {0: 2 * half}})
