"""Attention of transformers models as one whole operator, through the library's own registries.

Two functions are registered under one name: one stands in place of attention, the other builds the mask that the model
hands to it. The mask is always a tensor computed by data flow from index vectors and the padding mask, never None: a
later pass describes it, and nothing that a model expresses only in its mask is lost.

Models that do not use the registries compute attention by themselves ("eager"); for them only the mask is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from planish.frontends import custom_ops
from planish.ir import UnsupportedError

IMPLEMENTATION = "planish"

# Said by the mask already, or about something other than the result: positions, caches, what else to return.
_INERT = {
    "cache_position", "deterministic", "is_causal", "output_attentions", "output_hidden_states", "position_ids",
    "return_dict", "sliding_window", "use_cache",
}  # fmt: skip


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query [B, H, S, D] over key, value [B, Hkv, T, D] as the operator planish::attention.

    Returns [B, S, H, D], as the registry prescribes. Raises UnsupportedError for an argument whose meaning is unknown.
    """
    what = type(module).__name__
    if dropout:
        raise UnsupportedError(f"{what} asks for dropout {dropout} in attention; call eval() on the model")
    unknown = sorted(k for k, v in others.items() if k not in _INERT and v is not None and v is not False)
    if unknown:
        raise UnsupportedError(f"{what} passes {', '.join(unknown)} to attention, whose meaning is not known here")
    causal = getattr(module, "is_causal", True) if others.get("is_causal") is None else others["is_causal"]
    if attention_mask is None and causal:
        raise UnsupportedError(f"{what} asks for causal attention without building a mask, which is not supported")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    bias = position_bias
    if attention_mask is not None:
        bias = _additive(attention_mask, query.dtype) if bias is None else _masked(bias, attention_mask)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return custom_ops.attention(q, k, v, bias, s_aux, scale, None if softcap is None else float(softcap)), None


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _masked(bias: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def visibility_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> torch.Tensor:
    """Which keys each query sees: bool, broadcasting to [B, 1, q_length, kv_length].

    `mask_function` compares indices elementwise, so that it is called once with index tensors of broadcasting shapes.
    The other arguments of the registry only permit shortcuts that are not taken here.
    """
    q_index = torch.arange(q_offset, q_offset + q_length, device=device).view(1, 1, q_length, 1)
    kv_index = torch.arange(kv_offset, kv_offset + kv_length, device=device).view(1, 1, 1, kv_length)
    batch_index = torch.arange(batch_size, device=device).view(batch_size, 1, 1, 1)
    head_index = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
    mask: torch.Tensor = mask_function(batch_index, head_index, q_index, kv_index)
    if mask.dim() != 4 or mask.dtype != torch.bool:
        raise UnsupportedError(
            f"a mask function of the model gave {mask.dtype} of {mask.dim()} axes, not a 4-D bool mask"
        )
    if attention_mask is not None:
        mask = mask & attention_mask.to(torch.bool)[:, None, None, :]
    return mask.expand(-1, -1, q_length, kv_length)


def additive_mask(*, dtype: torch.dtype = torch.float32, **arguments: Any) -> torch.Tensor:
    """The same mask as 0 and the dtype's lowest number, which eager attention adds to its scores."""
    mask = visibility_mask(**arguments)
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


@contextmanager
def whole_attention() -> Iterator[None]:
    """While open, models set to IMPLEMENTATION trace to planish::attention, and eager ones get their mask from here."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, visibility_mask)
    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = additive_mask
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["eager"]
