"""Laws of every operation in the registry, on instances that the operation draws of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Op, Sample, TensorType
from planish.ir.interpret import promote_dtype, promote_op
from planish.ir.op import check_operand_count
from planish.ir.ops import OPS, Aten, Attention, Embedding, Linear
from planish.ir.ops.aten_axes import ATEN_AXES
from planish.ir.ops.aten_samples import ATEN_SAMPLES
from planish.testing.chooser import HypothesisChooser
from planish.testing.profiles import share
from planish.testing.references import ATEN_REFERENCES, REFERENCES
from planish.testing.tensors import generators, op_samples, operand_tensors, tensors_for

MODEL_OPS = sorted(set(OPS) - {"aten"})
Tensors = tuple[torch.Tensor | None, ...]


@st.composite
def aten_samples(draw: st.DrawFn, overload: str) -> Sample:
    return Aten.sample_overload(overload, HypothesisChooser(draw))


@pytest.fixture(autouse=True)
def _float64_default() -> Any:
    """Promoted evaluation makes floats out of integers in float64, as the interpreter does."""
    yield
    torch.set_default_dtype(torch.float32)


def check_types(sample: Sample, operands: Tensors) -> tuple[torch.Tensor, ...]:
    check_operand_count(sample.op, sample.operands)
    declared, results = sample.op.infer(*sample.operands), sample.op.evaluate(*operands)
    assert [TensorType(r.dtype, tuple(r.shape)) for r in results] == list(declared)
    return results


def promote(operands: Tensors) -> Tensors:
    return tuple(None if o is None else o.to(promote_dtype(o.dtype)) for o in operands)


def promoted(op: Op, operands: Tensors) -> tuple[torch.Tensor, ...]:
    torch.set_default_dtype(torch.float64)
    results = promote_op(op).evaluate(*promote(operands))
    torch.set_default_dtype(torch.float32)
    return results


def arrays(operands: Tensors) -> list[Any]:
    return [None if o is None else (o if o.dtype == torch.bool else o.to(torch.float64)).numpy() for o in operands]


def test_registry_has_a_reference_for_every_operation() -> None:
    assert sorted(REFERENCES) == MODEL_OPS
    assert ATEN_AXES.keys() == ATEN_SAMPLES.keys()
    assert all(name == op.name for name, op in OPS.items())


@pytest.mark.parametrize("name", sorted(OPS))
@share(0.2)
@given(data=st.data())
def test_type_rule_says_what_evaluation_gives(name: str, data: st.DataObject) -> None:
    sample = data.draw(op_samples(name))
    check_types(sample, data.draw(tensors_for(sample)))


@pytest.mark.parametrize("name", MODEL_OPS)
@share(0.2)
@given(data=st.data())
def test_meaning_is_the_documented_formula(name: str, data: st.DataObject) -> None:
    """In float64. Fewer than 2^8 roundings lie behind a result on each side, of numbers up to 2^6 times its own size
    (scores before a softmax), so 2^15 units in the last place hold every difference that is not one of meaning."""
    sample = data.draw(op_samples(name))
    operands = data.draw(tensors_for(sample))
    references = REFERENCES[name](sample.op, *arrays(promote(operands)))
    for result, reference in zip(promoted(sample.op, operands), references, strict=True):
        want = torch.from_numpy(reference).to(torch.float64)
        assert result.shape == want.shape
        worst = 2.0**-53 * 2**15 * (1 + float(want.abs().max()))
        assert float((result.to(torch.float64) - want).abs().max()) <= worst


@pytest.mark.parametrize("overload", sorted(ATEN_REFERENCES))
@share(0.06)
@given(data=st.data())
def test_aten_calls_pass_their_arguments_on(overload: str, data: st.DataObject) -> None:
    """Results are integers here: equal to the last bit."""
    sample = data.draw(aten_samples(overload))
    operands = data.draw(tensors_for(sample))
    assert isinstance(sample.op, Aten)
    arguments, keywords = sample.op.call_arguments(tuple(arrays(promote(operands))))
    (result,) = promoted(sample.op, operands)
    assert torch.equal(result, torch.as_tensor(ATEN_REFERENCES[overload](*arguments, **keywords)).to(result.dtype))


def check_ties(sample: Sample, operands: Tensors, generator: torch.Generator, data: st.DataObject) -> None:
    """Change one index along a tied axis: no result may change at another index of the axis it is tied to."""
    rule = sample.op.axes(*sample.operands)
    if rule is None:
        return
    before = sample.op.evaluate(*operands)
    other = operand_tensors(sample.op, sample.operands, generator)
    for tie in rule.ties:
        old, new = operands[tie.operand], other[tie.operand]
        assert old is not None and new is not None, "an absent operand is tied"
        size = old.shape[tie.axis]
        assert before[tie.result].shape[tie.result_axis] == size
        index = data.draw(st.integers(0, size - 1))
        changed = old.clone()
        changed.select(tie.axis, index).copy_(new.select(tie.axis, index))
        after = sample.op.evaluate(*operands[: tie.operand], changed, *operands[tie.operand + 1 :])
        rest = torch.tensor([i for i in range(size) if i != index], dtype=torch.int64)
        kept, now = (r[tie.result].index_select(tie.result_axis, rest) for r in (before, after))
        assert torch.equal(torch.nan_to_num(kept), torch.nan_to_num(now)), tie


@pytest.mark.parametrize("name", MODEL_OPS)
@share(0.1)
@given(data=st.data())
def test_axis_ties_are_true(name: str, data: st.DataObject) -> None:
    sample = data.draw(op_samples(name))
    check_ties(sample, data.draw(tensors_for(sample)), data.draw(generators()), data)


@pytest.mark.parametrize("overload", sorted(ATEN_AXES))
@share(0.04)
@given(data=st.data())
def test_aten_types_and_axis_ties_are_true(overload: str, data: st.DataObject) -> None:
    sample = data.draw(aten_samples(overload))
    operands = data.draw(tensors_for(sample))
    check_types(sample, operands)
    check_ties(sample, operands, data.draw(generators()), data)


# How many roundings of size |result| + 1 (times the largest operands) separate a result from the promoted one.
ROUNDINGS = {
    "attention": 64, "cache_append": 1, "conv2d": 4, "embedding": 0, "gated_activation": 8, "hadamard": 2, "last_token": 0,
    "layer_norm": 8, "linear": 4, "positions": 0, "quantized_linear": 4, "rms_norm": 8, "rope": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(MODEL_OPS) - {"quantize_activation"}))
@share(0.15)
@given(data=st.data())
def test_promotion_changes_only_rounding(name: str, data: st.DataObject) -> None:
    """The distance to the promoted result is a few units of the working dtype, measured on the result computed with the
    magnitudes of all operands (so that cancellation is allowed for). Where all is exact, so is the result."""
    sample = data.draw(op_samples(name))
    operands = data.draw(tensors_for(sample))
    largest = max([1.0, *(float(o.abs().max()) for o in operands if o is not None and o.dtype.is_floating_point)])
    terms = max([1, *(o.shape[-1] for o in operands if o is not None and o.dim())])
    if name == "conv2d":
        terms = operands[1].shape[1:].numel() if operands[1] is not None else 1
    for result, exact in zip(sample.op.evaluate(*operands), promoted(sample.op, operands), strict=True):
        unit = torch.finfo(result.dtype).eps / 2 if result.dtype.is_floating_point else 0.0
        allowed = ROUNDINGS[name] * unit * (1 + largest) ** 2 * (1 + terms)
        assert float((result.to(torch.float64) - exact).abs().max()) <= allowed


@share(0.5)
@given(data=st.data())
def test_quantized_activations_are_near_the_promoted_ones(data: st.DataObject) -> None:
    """The code may fall to the other side of a half; the scale is rounded once."""
    sample = data.draw(op_samples("quantize_activation"))
    operands = data.draw(tensors_for(sample))
    (codes, scale), (codes64, scale64) = sample.op.evaluate(*operands), promoted(sample.op, operands)
    assert int((codes.to(torch.int64) - codes64.to(torch.int64)).abs().max()) <= 1
    unit = torch.finfo(scale.dtype).eps
    assert bool(((scale.to(torch.float64) - scale64).abs() <= unit * scale64).all())


def test_attention_reads_no_key_that_no_query_sees() -> None:
    """A cache holds rubbish beyond its length: it must not leak, not even as NaN."""
    q, k, v = torch.ones(1, 1, 1, 2), torch.ones(1, 4, 1, 2), torch.ones(1, 4, 1, 2)
    k[:, 2:], v[:, 2:] = torch.nan, torch.inf
    length = torch.tensor([2])
    (y,) = Attention(1.0, causal=False).evaluate(q, k, v, None, None, length, None, None, None)
    assert torch.equal(y, torch.ones(1, 1, 1, 2))
    (none,) = Attention(1.0, causal=False).evaluate(q, k, v, None, None, length * 0, None, None, None)
    assert torch.equal(none, torch.zeros(1, 1, 1, 2))


def test_an_index_outside_the_table_is_an_error() -> None:
    with pytest.raises(IndexError):
        Embedding().evaluate(torch.tensor([3]), torch.ones(3, 2))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_linear_needs_matching_features(inner: int, weight_inner: int, outs: int) -> None:
    x, weight = (TensorType(torch.float32, s) for s in ((2, inner), (outs, weight_inner)))
    if inner == weight_inner:
        assert Linear().infer(x, weight, None) == (TensorType(torch.float32, (2, outs)),)
    else:
        with pytest.raises(Exception, match="the input has"):
            Linear().infer(x, weight, None)
