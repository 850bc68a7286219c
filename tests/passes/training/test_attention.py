"""Attention by the fused kernel: the operation's values and gradients, up to rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir.ops import Attention
from planish.passes.training.attention import fused_attention
from planish.testing.chooser import HypothesisChooser
from planish.testing.profiles import share

MASKS = [(c, w, k) for c in (False, True) for w, k in ((None, None), (3, None), (1, None), (None, 2), (3, 2))]
"""Causal, window and chunk."""


@st.composite
def calls(draw: st.DrawFn, plain: bool) -> tuple[Attention, list[torch.Tensor | None]]:
    """A call that the kernel knows, its operands in float64; a plain one has no cache, and no padding that hides a key."""
    sample = Attention.sample(HypothesisChooser(draw))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    types = [*sample.operands[:6], None, None, None]
    if plain:
        length = draw(st.integers(1, 6))
        types[:3] = [t.with_shape((t.shape[0], length, *t.shape[2:])) for t in types[:3] if t is not None]
        types[3:6] = [None, None, None]
    operands: list[torch.Tensor | None] = []
    for declared in types:
        if declared is None:
            operands.append(None)
            continue
        shape = declared.concrete({})
        if declared.dtype == torch.bool:
            operands.append(torch.rand(shape, generator=generator) < draw(st.sampled_from([0.5, 1.0])))
        elif declared.dtype.is_floating_point:
            operands.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        else:
            operands.append(torch.randint(0, 3, shape, generator=generator))
    return replace(sample.op, softcap=None), operands  # type: ignore[type-var]


def run(op: Attention, operands: list[torch.Tensor | None], dtype: torch.dtype, *, fused: bool) -> list[torch.Tensor]:
    """The result and the gradients of q, k and v for one upstream gradient, in float64."""
    leaves = [o.detach().to(dtype, copy=True).requires_grad_() for o in operands[:3] if o is not None]
    call: list[Any] = [*leaves, *operands[3:]]
    result = fused_attention(op, tuple(call)) if fused else op.evaluate(*call)[0]
    assert result is not None and result.dtype == dtype
    upstream = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).reshape(result.shape)
    result.backward(upstream.to(dtype))
    return [t.detach().double() for t in (result, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("causal, window, chunk", MASKS)
@share(0.2)
@given(st.data())
def test_values_and_gradients_are_those_of_the_operation(
    plain: bool, causal: bool, window: int | None, chunk: int | None, data: st.DataObject
) -> None:
    """In float64, within 64 roundings of the absolute values that are summed: a gradient can cancel to nothing.

    An element sums at most `terms` products of a weight (up to 1), an upstream gradient and a value (up to 1 times v, over
    the value's size, and once more less their mean), and a query or key.
    """
    drawn, operands = data.draw(calls(plain))
    op = replace(drawn, causal=causal, window=window, chunk=chunk)
    own, fused = (run(op, operands, torch.float64, fused=fused) for fused in (False, True))
    q, k, v = (o.detach() for o in operands[:3] if o is not None)
    terms = max(q.shape[1] * q.shape[2], k.shape[1])
    size = 2 * terms * v.shape[3] * (1 + float(v.abs().max())) * (1 + float(q.abs().max()) + float(k.abs().max()))
    assert len(own) == len(fused) == 4
    for expected, got in zip(own, fused):
        assert float((expected - got).abs().max()) <= 64 * 2.0**-53 * size


@pytest.mark.parametrize("what", ["softcap", "slopes", "sinks", "bias", "narrow"])
@share(0.2)
@given(calls(plain=False))
def test_other_attention_is_left_to_the_operation(what: str, call: tuple[Attention, list[torch.Tensor | None]]) -> None:
    op, operands = call
    if what == "softcap":
        op = replace(op, softcap=5.0)  # type: ignore[type-var]
    elif what == "narrow":
        operands = [o.to(torch.bfloat16) if o is not None and o.is_floating_point() else o for o in operands]
    else:
        operands = list(operands)
        operands[6 + ["slopes", "sinks", "bias"].index(what)] = torch.zeros(1)
    assert fused_attention(op, tuple(operands)) is None


def test_a_key_that_no_query_sees_may_hold_anything() -> None:
    q, k, v = (torch.ones(1, 2, 1, 4) for _ in range(3))
    k[0, 1], v[0, 1] = torch.nan, torch.inf
    hidden = torch.tensor([[True, False]])
    result = fused_attention(Attention(1.0), (q, k, v, hidden, None, None, None, None, None))
    assert result is not None and torch.equal(result, torch.ones(1, 2, 1, 4))
