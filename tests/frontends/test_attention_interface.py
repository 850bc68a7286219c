"""What stands in place of transformers' attention and masks says what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import masking_utils as hf
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capped_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as sink_attention

from planish.frontends import custom_ops
from planish.frontends.attention_interface import (
    IMPLEMENTATION,
    additive_mask,
    attention_forward,
    visibility_mask,
    whole_attention,
)
from planish.ir import UnsupportedError
from planish.testing.profiles import share

Masks = dict[str, Callable[[int, int, torch.Tensor], Any]]

# From a size, a batch and the padding mask to a mask function of transformers.
FAMILIES: Masks = {
    "causal": lambda n, b, p: hf.causal_mask_function,
    "bidirectional": lambda n, b, p: hf.bidirectional_mask_function,
    "window": lambda n, b, p: hf.sliding_window_causal_mask_function(n),
    "two-sided window": lambda n, b, p: hf.sliding_window_bidirectional_mask_function(n),
    "chunks": lambda n, b, p: hf.chunked_causal_mask_function(n, (~p).sum(1)),
    "packed": lambda n, b, p: hf.packed_sequence_compatibility_function(
        hf.sliding_window_causal_mask_function(n), p.long().cumsum(1), (p.long().cumsum(1) % n == 0).long().cumsum(1)
    ),
    "blocks": lambda n, b, p: hf.or_masks(hf.causal_mask_function, hf.blockwise_overlay(p.long() * n - 1)),
    "offset": lambda n, b, p: hf.add_offsets_to_mask_function(hf.causal_mask_function, n, 0),
}


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 7),
    st.booleans(),
    st.randoms(),
)
@share(0.6)
def test_masks_are_those_of_transformers(
    family: str, size: int, batch: int, length: int, padded: bool, random: Any
) -> None:
    padding = torch.tensor([[random.random() < 0.7 for _ in range(length)] for _ in range(batch)])
    function = FAMILIES[family](size, batch, padding)
    given_ = {"batch_size": batch, "q_length": length, "kv_length": length, "mask_function": function}
    mask = padding if padded else None
    want = hf.sdpa_mask(**given_, attention_mask=mask, allow_is_causal_skip=False)
    got = visibility_mask(**given_, attention_mask=mask, allow_is_causal_skip=True, local_size=3, dtype=torch.float32)
    assert torch.equal(got.expand(batch, 1, length, length), want)
    eager = hf.eager_mask(**given_, attention_mask=mask)
    assert torch.equal(additive_mask(**given_, attention_mask=mask).expand(batch, 1, length, length), eager)


def test_a_mask_of_no_known_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="not a 4-D bool mask"):
        visibility_mask(1, 2, 2, mask_function=lambda b, h, q, k: (q - k).float())


class Layer(nn.Module):
    """What transformers' attention functions read of the module that calls them."""

    def __init__(self, groups: int, sinks: torch.Tensor | None = None, is_causal: bool = True) -> None:
        super().__init__()
        self.num_key_value_groups, self.sinks, self.is_causal, self.head_dim = groups, sinks, is_causal, 3


def heads(length: int = 5, batch: int = 2, count: int = 4, kv: int = 2, size: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(batch, count, length, size), (batch, kv, length, size), (batch, kv, length, size + 1)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def masks(length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """The same window mask with padding, as visibility and as what eager attention adds. Every query sees a key."""
    given_ = {"batch_size": 2, "q_length": length, "kv_length": length}
    function = hf.sliding_window_causal_mask_function(3)
    padding = torch.tensor([[True] * length, [True] * (length - 2) + [False] * 2])
    arguments = {**given_, "mask_function": function, "attention_mask": padding}
    return visibility_mask(**arguments), hf.eager_mask(**arguments, dtype=torch.float64)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("scaling", [None, 0.4])
def test_attention_with_soft_cap(softcap: float | None, scaling: float | None) -> None:
    visible, added = masks()
    q, k, v = heads()
    want, _ = capped_attention(Layer(2), q, k, v, added, scaling=scaling, softcap=softcap)
    got, weights = attention_forward(Layer(2), q, k, v, visible, scaling=scaling, softcap=softcap, sliding_window=3)
    assert weights is None
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_attention_with_sinks() -> None:
    visible, added = masks()
    q, k, v = heads()
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    want, _ = sink_attention(Layer(2, sinks), q, k, v, added, scaling=0.5)
    got, _ = attention_forward(Layer(2), q, k, v, visible, scaling=0.5, s_aux=sinks)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_position_bias_and_additive_masks() -> None:
    visible, _ = masks()
    q, k, v = heads()
    bias = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    hidden = torch.zeros((), dtype=torch.float64).masked_fill(~visible, -torch.inf)
    want, _ = attention_forward(Layer(2), q, k, v, hidden + bias)
    got, _ = attention_forward(Layer(2), q, k, v, visible, position_bias=bias)
    torch.testing.assert_close(got, want)
    got, _ = attention_forward(Layer(2), q, k, v, hidden, position_bias=bias)
    torch.testing.assert_close(got, want)


def test_attention_without_a_mask() -> None:
    q, k, v = heads()
    want, _ = capped_attention(Layer(2), q, k, v, None)
    got, _ = attention_forward(Layer(2, is_causal=False), q, k, v, None)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for layer, more in (
        (Layer(2), {}),
        (Layer(2), {"is_causal": None}),
        (Layer(2, is_causal=False), {"is_causal": True}),
    ):
        with pytest.raises(UnsupportedError, match="causal attention without building a mask"):
            attention_forward(layer, q, k, v, None, **more)


def test_arguments_of_unknown_meaning_are_refused() -> None:
    q, k, v = heads()
    visible, _ = masks()
    with pytest.raises(UnsupportedError, match="Layer passes block_indices, dim to attention"):
        attention_forward(Layer(2), q, k, v, visible, dim=1, block_indices=torch.zeros(1), cu_seq_lens_q=None)
    with pytest.raises(UnsupportedError, match=r"asks for dropout 0\.1"):
        attention_forward(Layer(2), q, k, v, visible, dropout=0.1)


def test_operators_are_sound_for_torch() -> None:
    q, k, v = (x.transpose(1, 2).contiguous() for x in heads())
    bias = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    torch.library.opcheck(custom_ops.attention, (q, k, v, bias, None, 0.5, None))
    torch.library.opcheck(custom_ops.attention, (q, k, v, None, torch.ones(4, dtype=torch.float64), 0.5, 2.0))
    torch.library.opcheck(custom_ops.positions, (torch.tensor([[False, True, True]]),))


def test_the_library_is_left_as_it_was() -> None:
    before = hf.ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    with whole_attention():
        assert hf.ALL_MASK_ATTENTION_FUNCTIONS["eager"] is additive_mask
        assert IMPLEMENTATION in hf.ALL_MASK_ATTENTION_FUNCTIONS
    assert hf.ALL_MASK_ATTENTION_FUNCTIONS["eager"] is before
