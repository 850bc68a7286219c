"""Error bounds: the true rounding error of torch's own kernels never exceeds them, and they are not idle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Function, Interpreter, Module, Op
from planish.ir.bounds import Bounded, NoBound, evaluate_bounded, run_bounded, unit_roundoff
from planish.ir.bounds.functions import FUNCTIONS
from planish.ir.interpret import default_dtype, promote_dtype, promote_op
from planish.ir.module import Operand, ParamRef, StateRef
from planish.ir.ops import OPS, Linear, Slot, aten
from planish.testing.modules import modules
from planish.testing.profiles import share
from planish.testing.tensors import calls, generators, op_samples, operand_tensors

Tensors = tuple[torch.Tensor | None, ...]


def noisy(operands: Tensors, generator: torch.Generator) -> Tensors:
    """Floating operands as Gaussian numbers in place of small integers, which would hide every rounding."""
    return tuple(
        torch.randn(o.shape, generator=generator).to(o.dtype) if o is not None and o.is_floating_point() else o
        for o in operands
    )


def wide(operands: Tensors) -> Tensors:
    return tuple(None if o is None else o.to(promote_dtype(o.dtype)) for o in operands)


def exceeded(computed: torch.Tensor, exact: Bounded, bound: torch.Tensor) -> bool:
    """Whether a computed tensor is farther from the float64 one than both bounds together allow."""
    y, y64 = computed.to(torch.float64), exact.value.to(torch.float64)
    distance = (y - y64).abs()
    # An overflow in the narrow dtype is no rounding; NaN meets NaN where the operation is undefined.
    fine = (distance <= bound + exact.bound()) | (y == y64) | ~torch.isfinite(y)
    return not bool(fine.all())


def bounded(op: Op, operands: Tensors) -> tuple[Bounded, ...]:
    return evaluate_bounded(op, [None if o is None else Bounded(o) for o in operands])


@pytest.mark.parametrize("name", sorted(OPS))
@share(0.4)
@given(data=st.data())
def test_one_operation(name: str, data: st.DataObject) -> None:
    sample = data.draw(op_samples(name))
    generator = data.draw(generators())
    operands = noisy(operand_tensors(sample.op, sample.operands, generator), generator)
    try:
        bounds = bounded(sample.op, operands)
        with default_dtype(torch.float64):
            exact = bounded(promote_op(sample.op), wide(operands))
    except NoBound:
        return
    for computed, bound, reference in zip(sample.op.evaluate(*operands), bounds, exact):
        assert not exceeded(computed, reference, bound.bound())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("overload", sorted(FUNCTIONS))
def test_every_half_width_value(overload: str, dtype: torch.dtype) -> None:
    """All 65536 arguments, through the vector kernels and through the scalar ones that finish a tensor."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    op = aten(overload, Slot(0))
    for x in (every, every[::2]):
        with default_dtype(torch.float64):
            (exact,) = bounded(promote_op(op), (x.to(torch.float64),))
        (found,) = bounded(op, (x,))
        assert not exceeded(found.value, exact, found.bound())


@share(0.5)
@given(data=st.data())
def test_whole_programs(data: st.DataObject) -> None:
    """Errors grow from operation to operation as the program runs; the bounds grow with them."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    module = data.draw(modules(size=5, functions=1, dtype=dtype))
    inputs, states = data.draw(calls(module, "forward"))
    program = module.functions["forward"]
    sizes = {s: n for v in program.inputs for s, n in zip(map(str, v.type.shape), inputs[v.name].shape)}
    sizes |= {s: n for name, t in states.items() for s, n in zip(map(str, module.states[name].type.shape), t.shape)}
    try:
        narrow = _run(module, program, inputs, states, sizes, promote=False)
        exact = _run(module, program, inputs, states, sizes, promote=True)
    except NoBound:
        return
    computed = Interpreter(module).run("forward", inputs, states, sizes)
    for number, output in enumerate(program.outputs):
        assert not exceeded(computed[number], exact[output], narrow[output].bound())


def _run(
    module: Module, program: Function, inputs: dict[str, torch.Tensor], states: dict[str, torch.Tensor],
    sizes: dict[str, int], *, promote: bool,
) -> dict[Operand, Bounded]:  # fmt: skip
    def given_tensor(tensor: torch.Tensor) -> Bounded:
        return Bounded(tensor.to(promote_dtype(tensor.dtype)) if promote else tensor)

    def read(operand: Operand) -> Bounded:
        if isinstance(operand, ParamRef):
            return given_tensor(module.params[operand.name].value())
        assert isinstance(operand, StateRef)
        return given_tensor(states[operand.name])

    environment = {v: given_tensor(inputs[v.name]) for v in program.inputs}
    prepare = (lambda op: promote_op(op.bind(sizes))) if promote else (lambda op: op.bind(sizes))
    with default_dtype(torch.float64 if promote else torch.float32):
        known = run_bounded(program.nodes, environment, read, prepare)
    return {o: known[o] if not isinstance(o, (ParamRef, StateRef)) else read(o) for o in program.outputs}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sum_costs_one_rounding(dtype: torch.dtype) -> None:
    x, y = (torch.randn(7, 5).to(dtype) for _ in range(2))
    (result,) = bounded(aten("add.Tensor", Slot(0), Slot(1)), (x, y))
    rounding = unit_roundoff(dtype) * result.value.to(torch.float64).abs()
    assert bool((result.bound() >= rounding).all())
    assert bool((result.bound() <= 1.1 * rounding + 1e-37).all())


@pytest.mark.parametrize("inner", [1, 16, 300])
def test_a_product_costs_one_rounding_for_each_term(inner: int) -> None:
    x, weight = torch.randn(5, inner), torch.randn(3, inner)
    (result,) = bounded(Linear(), (x, weight, None))
    magnitude = (x.abs().double() @ weight.abs().double().t()) * unit_roundoff(torch.float32)
    assert bool((result.bound() >= magnitude).all())
    assert bool((result.bound() <= 1.1 * (inner + 2) * magnitude).all())


def test_half_width_products_are_summed_in_float32() -> None:
    x, weight = (torch.randn(5, 400).to(torch.bfloat16) for _ in range(2))
    (result,) = bounded(Linear(), (x, weight, None))
    magnitude = x.abs().double() @ weight.abs().double().t()
    assert bool((result.bound() <= 2**-8 * magnitude).all())


def test_moving_elements_costs_nothing() -> None:
    x = torch.randn(3, 4)
    for op in (
        aten("transpose.int", Slot(0), 0, 1),
        aten("view.default", Slot(0), (4, 3)),
        aten("neg.default", Slot(0)),
    ):
        assert not bool(bounded(op, (x,))[0].bound().any())


def test_errors_move_with_their_elements() -> None:
    error = torch.zeros(2, 3, dtype=torch.float64)
    error[0, 2] = 1.0
    (result,) = evaluate_bounded(aten("transpose.int", Slot(0), 0, 1), [Bounded(torch.randn(2, 3), error)])
    assert torch.equal(result.bound(), error.t())


def test_a_decision_that_rounding_could_turn() -> None:
    """Where a comparison is within the error, a choice may be either side: the bound covers their distance."""
    x = Bounded(torch.tensor([1.0, 1.0]), torch.tensor([1e-3, 1e-3], dtype=torch.float64))
    (less,) = evaluate_bounded(aten("lt.Scalar", Slot(0), 1.0005), [x])
    assert less.bound().tolist() == [1.0, 1.0]
    (clear,) = evaluate_bounded(aten("lt.Scalar", Slot(0), 1.1), [x])
    assert clear.bound().tolist() == [0.0, 0.0]
    sides = [Bounded(torch.tensor([5.0, 5.0])), Bounded(torch.tensor([2.0, 5.0]))]
    (chosen,) = evaluate_bounded(aten("where.self", Slot(0), Slot(1), Slot(2)), [less, *sides])
    assert chosen.bound().tolist() == [3.0, 0.0]


def test_division_by_what_may_be_zero_has_no_finite_bound() -> None:
    y = Bounded(torch.tensor([1e-3]), torch.tensor([1e-2], dtype=torch.float64))
    (result,) = evaluate_bounded(aten("div.Tensor", Slot(0), Slot(1)), [Bounded(torch.tensor([1.0])), y])
    assert math.isinf(float(result.bound()))


def test_masked_rows_do_not_spoil_the_others() -> None:
    """-inf where a mask hides something is exact, and its error does not spread."""
    scores = torch.randn(4, 6)
    scores[:, 3:] = -math.inf
    (result,) = bounded(aten("softmax.int", Slot(0), -1), (scores,))
    assert float(result.bound().max()) < 1e-5
    assert not bool(result.bound()[:, 3:].gt(1e-30).any())


def test_the_coarsest_roundoff_is_a_ceiling() -> None:
    x = torch.randn(9).to(torch.bfloat16)
    op = aten("mul.Tensor", Slot(0), Slot(0))
    (free,) = evaluate_bounded(op, [Bounded(x)])
    (held,) = evaluate_bounded(op, [Bounded(x)], coarsest=unit_roundoff(torch.float32))
    assert bool((held.bound() < free.bound() / 1000).all())


def test_what_has_no_rule_has_no_bound() -> None:
    with pytest.raises(NoBound, match=r"no error rule is known for the operator aten\.erfinv"):
        bounded(aten("erfinv.default", Slot(0)), (torch.rand(3),))
