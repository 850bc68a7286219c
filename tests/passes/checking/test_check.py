"""The check itself: what it compares, within what, on what, and what it admits not to have checked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Builder, Module, Node, Operand, ParamRef, Rewriter, TensorType, Value, dense_param, symbol
from planish.ir.bounds import Bounded
from planish.ir.ops import Attention, Embedding, Linear, Slot, aten
from planish.passes.check import Checker, CheckOptions
from planish.passes.checking.compare import by_float32, in_working_dtype, measure, within_bounds
from planish.passes.checking.outcome import CHECKED, COMPARED, FAILED, SKIPPED, Outcome
from planish.passes.checking.probes import make_probe
from planish.passes.contract import Exact, Lossy, Refines
from planish.passes.pass_base import Correspondence
from planish.testing.tiny_decoder import tiny_decoder

F32, F64 = torch.float32, torch.float64
BATCH = symbol("B")


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def bounded(value: float, error: float) -> Bounded:
    return Bounded(doubles(value), doubles(error))


def test_within_bounds() -> None:
    assert within_bounds(bounded(1.0, 1e-9), bounded(1.0 + 7e-9, 1e-9)).used == pytest.approx(7 / 8)
    assert (
        "differs in float64: 1.00000009 instead of 1"
        in within_bounds(bounded(1.0, 1e-8), bounded(1.0 + 9e-8, 1e-8)).sentence
    )
    loose = within_bounds(bounded(1.0, 1e-3), bounded(1.0 + 1e-9, 0.0))
    assert "could not be checked" in loose.sentence and loose.bound == pytest.approx(4e-3)
    assert not within_bounds(bounded(1.0, 1e-3), bounded(1.0, 1e-3)).sentence, "equal bits need no bound"
    assert not within_bounds(bounded(math.nan, 0.0), bounded(3.0, 0.0)).sentence, "NaN is undefined"
    assert within_bounds(bounded(math.inf, 0.0), bounded(3.0, 0.0)).sentence
    assert within_bounds(bounded(1.0, 0.0), bounded(math.nan, 0.0)).sentence
    assert not within_bounds(bounded(1.0, 0.0), bounded(2.0, 0.0), torch.tensor([True])).sentence


def test_by_float32() -> None:
    x = doubles(1.0, 2.0)
    assert not by_float32(x, x + 3e-6, x + 1e-6)[2]
    assert by_float32(x, x + 5e-6, x + 1e-6)[2]
    # Where float32 happens to be right, one of its roundoffs is still allowed, and no more.
    assert not by_float32(x, x + 2**-24, x)[2]
    assert by_float32(x, x + 2**-20, x)[2]
    codes = torch.tensor([1, 2])
    assert by_float32(codes, torch.tensor([1, 3]), codes)[2]
    assert not by_float32(codes, torch.tensor([1, 3]), torch.tensor([1, 9]))[2], "float32 turns the source's own"


def test_in_working_dtype() -> None:
    source = Bounded(torch.tensor([1.0]), doubles(1e-7))
    assert not in_working_dtype(Bounded(torch.tensor([1.0 + 1e-7]), doubles(1e-7)), doubles(1.0), source).sentence
    rough = Bounded(torch.tensor([1.004]), doubles(1e-7))
    assert "loses precision" in in_working_dtype(rough, doubles(1.0), source).sentence
    overflowed = Bounded(torch.tensor([math.inf]), doubles(1e-7))
    assert in_working_dtype(overflowed, doubles(1.0), source).sentence
    assert not in_working_dtype(overflowed, doubles(1.0), overflowed).sentence, "the source overflows too"


def test_metrics() -> None:
    a = torch.randn(3, 5, dtype=F64)
    assert measure("relative_error", a, a * 1.01) == pytest.approx(0.01)
    assert measure("kl_divergence", a, a + 3.0) == pytest.approx(0.0, abs=1e-12), "a shift changes no softmax"
    p, q = a.softmax(-1), (a * 2).softmax(-1)
    assert measure("kl_divergence", a, a * 2) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))


def pair(
    build_before: object, build_after: object, kind: TensorType, *params: tuple[str, torch.Tensor]
) -> tuple[Module, Module, dict[str, Correspondence]]:
    """Two modules on one input x, the second made by `build_after` in place of the first's result."""
    b = Builder("forward")
    x = b.input("x", kind)
    y = build_before(b, x)  # type: ignore[operator]
    held = {n: dense_param(n, t) for n, t in params}
    module = Module({"forward": b.finish([b.emit(aten("neg.default", Slot(0)), y)], ["y"])}, held)
    function = module.functions["forward"]
    rewriter = Rewriter(function)
    for node in function.nodes:
        if y in node.outputs:
            rewriter.replace(y, build_after(rewriter, x))  # type: ignore[operator]
        else:
            rewriter.keep(node)
    return module, module.with_function(rewriter.finish_like()), {"forward": rewriter.correspondence}


def check(built: tuple[Module, Module, dict[str, Correspondence]], options: CheckOptions | None = None) -> Outcome:
    before, after, claims = built
    return Checker(options).check(before, after, Exact(), claims)


ROWS = TensorType(F32, (BATCH, 5))


def test_reordered_arithmetic_is_exact() -> None:
    def before(b: Builder, x: Value) -> Value:
        return b.emit(aten("mul.Scalar", Slot(0), 3.0), b.emit(aten("exp.default", Slot(0)), x))

    def after(b: Builder, x: Value) -> Value:
        return b.emit(aten("exp.default", Slot(0)), b.emit(aten("add.Scalar", Slot(0), math.log(3.0)), x))

    outcome = check(pair(before, after, ROWS))
    assert not outcome.failures and outcome.count(CHECKED) == 2
    assert 0 < outcome.largest_use <= 1 and max(r.bound for r in outcome.regions) < 1e-14


@pytest.mark.parametrize("off", [1e-3, 1e-6, 1e-9, 1e-12])
def test_an_error_far_below_float32_is_seen(off: float) -> None:
    """An epsilon that changes the twelfth digit is an error of meaning, though no float32 run could show it."""
    outcome = check(
        pair(
            lambda b, x: b.emit(aten("mul.Scalar", Slot(0), 2.0), x),
            lambda b, x: b.emit(aten("mul.Scalar", Slot(0), 2.0 * (1 + off)), x),
            TensorType(F64, (BATCH, 5)),
        )
    )
    assert outcome.failures and "differs in float64" in outcome.failures[0]


def test_a_loss_of_precision_is_seen_though_float64_hides_it() -> None:
    def narrow(b: Builder, x: Value) -> Value:
        short = b.emit(aten("_to_copy.default", Slot(0), dtype=torch.bfloat16), b.emit(aten("exp.default", Slot(0)), x))
        return b.emit(aten("_to_copy.default", Slot(0), dtype=F32), short)

    built = pair(lambda b, x: b.emit(aten("exp.default", Slot(0)), x), narrow, ROWS)
    assert "loses precision" in check(built).failures[0]
    assert not check(built, CheckOptions(working_dtypes=False)).failures


def test_rounding_on_purpose_in_the_source_is_no_loss() -> None:
    def narrow(b: Builder, x: Value) -> Value:
        short = b.emit(aten("_to_copy.default", Slot(0), dtype=torch.bfloat16), b.emit(aten("exp.default", Slot(0)), x))
        return b.emit(aten("_to_copy.default", Slot(0), dtype=F32), short)

    def twice(b: Builder, x: Value) -> Value:
        return narrow(b, b.emit(aten("abs.default", Slot(0)), b.emit(aten("abs.default", Slot(0)), x)))

    built = pair(lambda b, x: narrow(b, b.emit(aten("abs.default", Slot(0)), x)), twice, ROWS)
    assert not check(built).failures


def test_an_operator_without_a_bound_is_compared_by_the_other_rule() -> None:
    def before(b: Builder, x: Value) -> Value:
        return b.emit(aten("erfinv.default", Slot(0)), b.emit(aten("sigmoid.default", Slot(0)), x))

    def after(b: Builder, x: Value) -> Value:
        twice = b.emit(aten("neg.default", Slot(0)), b.emit(aten("neg.default", Slot(0)), x))
        return b.emit(aten("erfinv.default", Slot(0)), b.emit(aten("sigmoid.default", Slot(0)), twice))

    def wrong(b: Builder, x: Value) -> Value:
        return b.emit(aten("erfinv.default", Slot(0)), b.emit(aten("tanh.default", Slot(0)), x))

    outcome = check(pair(before, after, ROWS))
    assert not outcome.failures and outcome.count(COMPARED) == 2
    assert "erfinv" in outcome.regions[0].sentence
    assert check(pair(before, wrong, ROWS)).count(FAILED)


def test_what_exceeds_the_budget_is_skipped_and_said() -> None:
    weight = torch.randn(5, 5)

    def linear(b: Builder, x: Value, scale: float) -> Value:
        half = b.emit(aten("mul.Scalar", Slot(0), scale), x)
        return b.emit(Linear(), half, ParamRef("w", TensorType(F32, (5, 5))), None)

    wrong = pair(lambda b, x: linear(b, x, 1.0), lambda b, x: linear(b, x, 2.0), ROWS, ("w", weight))
    small = CheckOptions(region_bytes=2 * 16 * 25 - 1)
    outcome = check(wrong, small)
    assert outcome.count(SKIPPED) == 1 and "more than the budget" in outcome.regions[0].sentence
    assert outcome.failures, "the function as a whole is still checked"
    nothing = check(wrong, CheckOptions(region_bytes=1, whole_bytes=1))
    assert not nothing.failures and nothing.count(SKIPPED) and "as a whole" in nothing.skipped[0]
    assert check(wrong, CheckOptions(region_bytes=2 * 16 * 25)).count(FAILED)


def test_a_result_that_cannot_be_evaluated_fails() -> None:
    b = Builder("forward")
    ids = b.input("ids", TensorType(torch.int64, (BATCH, 3)))
    table = ParamRef("t", TensorType(F32, (7, 2)))
    module = Module(
        {"forward": b.finish([b.emit(Embedding(), ids, table)], ["y"])}, {"t": dense_param("t", torch.randn(7, 2))}
    )
    c = Builder("forward")
    c.inputs = [ids]
    after = module.with_function(
        c.finish([c.emit(Embedding(), c.emit(aten("add.Tensor", Slot(0), 100), ids), table)], ["y"])
    )
    outcome = Checker().check(module, after, Exact(), {})
    assert "cannot be evaluated" in outcome.failures[0]


def test_a_lossy_contract_looks_at_the_whole_only() -> None:
    built = pair(
        lambda b, x: b.emit(aten("mul.Scalar", Slot(0), 1.0), x),
        lambda b, x: b.emit(aten("mul.Scalar", Slot(0), 1.01), x),
        ROWS,
    )
    before, after, claims = built
    good = Checker().check(before, after, Lossy("relative_error", 0.02), claims)
    assert not good.regions and not good.failures and good.whole[0].difference == pytest.approx(0.01)
    assert Checker().check(before, after, Lossy("relative_error", 0.005), claims).failures


def masked_attention(fill: float) -> Module:
    """Attention of rows in which padding may see nothing, spelt with a mask of `fill`."""
    b = Builder("forward")
    x = b.input("x", TensorType(F32, (BATCH, symbol("S"), 1, 4)))
    mask = b.input("mask", TensorType(torch.bool, (BATCH, symbol("S"))))
    scores = b.emit(
        aten("matmul.default", Slot(0), Slot(1)),
        b.emit(aten("transpose.int", Slot(0), 1, 2), x),
        b.emit(aten("permute.default", Slot(0), (0, 2, 3, 1)), x),
    )
    seen = b.emit(
        aten("tril.default", Slot(0)),
        b.emit(
            aten("mul.Tensor", Slot(0), Slot(1)),
            b.emit(aten("unsqueeze.default", Slot(0), 1), mask),
            b.emit(
                aten("ones_like.default", Slot(0), dtype=torch.bool), b.emit(aten("select.int", Slot(0), 1, 0), scores)
            ),
        ),
    )
    hidden = b.emit(
        aten("where.ScalarOther", Slot(0), Slot(1), fill), b.emit(aten("unsqueeze.default", Slot(0), 1), seen), scores
    )
    weights = b.emit(aten("softmax.int", Slot(0), -1), hidden)
    y = b.emit(
        aten("transpose.int", Slot(0), 1, 2),
        b.emit(aten("matmul.default", Slot(0), Slot(1)), weights, b.emit(aten("transpose.int", Slot(0), 1, 2), x)),
    )
    return Module({"forward": b.finish([y], ["y"])})


def raised(module: Module, scale: float) -> Module:
    function = module.functions["forward"]
    b = Builder("forward")
    b.inputs = list(function.inputs)
    x, mask = function.inputs
    return module.with_function(b.finish([b.emit(Attention(scale), x, x, x, mask, *[None] * 5)], ["y"]))


def test_rows_without_a_promise() -> None:
    """Rows that see nothing hold different values; under Refines they are shown not to matter, under Exact they count."""
    module = masked_attention(-1e30)
    assert not Checker().check(module, raised(module, 1.0), Refines("mask"), {}).failures
    assert Checker().check(module, raised(module, 1.0), Exact(), {}).failures
    assert Checker().check(module, raised(module, 1.01), Refines("mask"), {}).failures


def test_undefined_rows() -> None:
    """With -inf the rows that see nothing are NaN, about which even Exact says nothing."""
    module = masked_attention(-math.inf)
    assert not Checker().check(module, raised(module, 1.0), Exact(), {}).failures
    assert Checker().check(module, raised(module, 1.01), Exact(), {}).failures


def test_the_first_operation_that_diverges() -> None:
    module = tiny_decoder()
    function = module.functions["forward"]
    rewriter = Rewriter(function)
    sums = [n for n in function.nodes if n.op == aten("add.Tensor", Slot(0), Slot(1))]
    for node in function.nodes:
        if node is sums[1]:
            operands: list[Operand] = [o for o in rewriter.operands(node) if o is not None]
            kept = Node(aten("sub.Tensor", Slot(0), Slot(1)), tuple(operands), node.outputs, "planted.py:1")
            rewriter.nodes.append(kept)
            rewriter.replace(node.output, kept.output)
        else:
            rewriter.keep(node)
    outcome = Checker().check(module, module.with_function(rewriter.finish_like()), Exact(), {})
    assert outcome.diverging.startswith("aten.add.Tensor")


def test_probes_are_legal_and_the_same_each_time() -> None:
    module = tiny_decoder(vocabulary=5, window=9)
    function = module.functions["forward"]
    first, again, other = (make_probe(module, function, n, 3) for n in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.sizes["B"] == 2 and first.sizes["S"] > 9, "the window must show"
    for probe in (first, other):
        ids, mask = probe.inputs["input_ids"], probe.inputs["attention_mask"]
        assert int(ids.max()) < 5 and int(ids.min()) >= 0
        assert bool((mask.long().diff(dim=1) >= 0).all()) and bool(mask[:, -1].all()), "left padding"
        assert len({int(row.sum()) for row in mask}) == len(mask), "rows of different lengths"


@given(st.integers(1, 40), st.integers(0, 9), st.integers(0, 1))
def test_probes_have_sizes_for_which_the_module_was_traced(low: int, more: int, number: int) -> None:
    builder = Builder("forward")
    x = builder.input("x", TensorType(torch.float32, (symbol("N"), symbol("M"))))
    ranges = (("M", low, None), ("N", low, low + more))
    module = Module({"forward": builder.finish([x], ["y"])}, metadata={"dim_ranges": ranges})
    sizes = make_probe(module, module.functions["forward"], number, 3).sizes
    assert low <= sizes["N"] <= low + more
    assert sizes["M"] >= low
