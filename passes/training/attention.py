"""Attention by torch's fused kernel, which neither computes nor keeps the scores of all pairs for the backward pass.

The operation's own meaning does both, several times over, and training would spend most of its time there. The values are the
same but for rounding; a test holds them and their gradients to the operation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from planish.ir.ops import Attention


def fused_attention(op: Attention, operands: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """The result of `op.evaluate`, or None for attention that the kernel does not know: with a soft cap, slopes, sinks or a
    bias, or in narrow floats, whose scores the operation computes in float32."""
    q, k, v, padding, start, kv_length, slopes, sinks, bias = operands
    assert q is not None and k is not None and v is not None
    known = op.softcap is None and slopes is None and sinks is None and bias is None
    if not known or q.dtype not in (torch.float32, torch.float64):
        return None
    length, keys, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    plain = (padding is None or bool(padding.all())) and start is None and kv_length is None
    mask = open_rows = None
    causal = plain and op.causal and length == keys and op.window is None and op.chunk is None
    if not causal:
        visible = op.visible((length, keys), padding, start, kv_length)
        # A key that no query sees may hold anything, even NaN; a query that sees none sees all, and its result is dropped.
        seen = visible.any(1).expand(k.shape[0], keys)[:, :, None, None]
        k, v = torch.where(seen, k, 0), torch.where(seen, v, 0)
        open_rows = visible.any(-1).unsqueeze(-1)
        mask = (visible | ~open_rows).unsqueeze(1)
    heads_k, heads_v = (
        x.repeat_interleave(group, 2).transpose(1, 2) if group > 1 else x.transpose(1, 2) for x in (k, v)
    )
    result = F.scaled_dot_product_attention(
        q.transpose(1, 2), heads_k, heads_v, attn_mask=mask, is_causal=causal, scale=op.scale
    ).transpose(1, 2)
    return (result if open_rows is None else torch.where(open_rows.unsqueeze(-1), result, 0)).contiguous()
