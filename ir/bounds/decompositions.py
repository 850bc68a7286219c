"""Operators computed by others that have rules, with the same meaning; half-width floats are widened as torch does."""

from __future__ import annotations

import math
from typing import Any

import torch

from planish.ir.bounds.mode import decomposition


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def _normalised(x: torch.Tensor, dims: list[int], eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    return centred * inverse, mean, inverse


@decomposition("native_layer_norm.default")
def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    normed, mean, inverse = _normalised(_widened(x), list(range(-len(shape), 0)), eps)
    normed = normed if weight is None else normed * _widened(weight)
    normed = normed if bias is None else normed + _widened(bias)
    return normed.to(x.dtype), mean, inverse


@decomposition("native_group_norm.default")
def _group_norm(x: Any, weight: Any, bias: Any, n: int, c: int, inner: int, groups: int, eps: float) -> Any:
    normed, mean, inverse = _normalised(_widened(x).reshape(n, groups, -1), [-1], eps)
    normed = normed.reshape(x.shape)
    channel = [1, c, *[1] * (x.dim() - 2)]
    normed = normed if weight is None else normed * _widened(weight).reshape(channel)
    normed = normed if bias is None else normed + _widened(bias).reshape(channel)
    return normed.to(x.dtype), mean.reshape(n, groups), inverse.reshape(n, groups)


@decomposition("_native_batch_norm_legit_no_training.default")
def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float) -> Any:
    channel = [1, -1, *[1] * (x.dim() - 2)]
    wide = _widened(x)
    normed = (wide - mean.reshape(channel)) * torch.rsqrt(variance + eps).reshape(channel)
    normed = normed if weight is None else normed * weight.reshape(channel)
    normed = normed if bias is None else normed + bias.reshape(channel)
    return normed.to(x.dtype), x.new_empty(0), x.new_empty(0)


@decomposition("native_batch_norm.default", "cudnn_batch_norm.default")
def _native_batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> Any:
    if training:
        dims = [0, *range(2, x.dim())]
        mean = _widened(x).mean(dims)
        centred = _widened(x) - mean.reshape([1, -1, *[1] * (x.dim() - 2)])
        variance = centred.square().mean(dims)
    return _batch_norm(x, weight, bias, mean, variance, momentum, eps)


def _variance(x: Any, dim: Any, correction: Any, keepdim: bool) -> tuple[Any, Any]:
    dims = list(range(x.dim())) if dim is None or dim == [] else ([dim] if isinstance(dim, int) else list(dim))
    wide = _widened(x)
    mean = wide.mean(dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    total = (wide - mean).square().sum(dims, keepdim=keepdim)
    found = total / max(0, count - (1 if correction is None else correction))
    return found, (mean if keepdim else wide.mean(dims))


@decomposition("var.correction")
def _var(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return _variance(x, dim, correction, keepdim)[0].to(x.dtype)


@decomposition("std.correction")
def _std(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return _variance(x, dim, correction, keepdim)[0].sqrt().to(x.dtype)


@decomposition("var_mean.correction")
def _var_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    variance, mean = _variance(x, dim, correction, keepdim)
    return variance.to(x.dtype), mean.to(x.dtype)


@decomposition("_scaled_dot_product_flash_attention_for_cpu.default")
def _attention(
    q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *, attn_mask: Any = None, scale: Any = None
) -> Any:
    out = _attend(q, k, v, attn_mask, causal, scale)
    # The second result, a log of sums for the backward pass, is read by no forward program.
    return out, q.new_empty(0)


@decomposition("_scaled_dot_product_attention_math.default")
def _attention_math(
    q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False, dropout_mask: Any = None,
    *, scale: Any = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    return _attend(q, k, v, mask, causal, scale), q.new_empty(0)


def _attend(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: Any) -> Any:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if k.dim() > 2 and k.shape[-3] != q.shape[-3]:
        # Several query heads share one head of keys and values.
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = (_widened(q) * scale) @ _widened(k).transpose(-1, -2)
    if causal:
        rows, columns = torch.arange(q.shape[-2]).unsqueeze(-1), torch.arange(k.shape[-2])
        scores = torch.where(columns <= rows, scores, -math.inf)
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    # A row without any visible key gives zeros, as torch's kernels do.
    weights = torch.where((scores == -math.inf).all(-1, keepdim=True), 0.0, weights)
    return (weights @ _widened(v)).to(q.dtype)


@decomposition("linalg_vector_norm.default")
def _norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    dims = list(range(x.dim())) if dim is None else dim
    wide = _widened(x if dtype is None else x.to(dtype))
    if ord == 2:
        return wide.square().sum(dims, keepdim=keepdim).sqrt().to(dtype or x.dtype)
    if ord == 1:
        return wide.abs().sum(dims, keepdim=keepdim).to(dtype or x.dtype)
    if ord == math.inf:
        return wide.abs().amax(dims, keepdim=keepdim).to(dtype or x.dtype)
    return wide.abs().pow(ord).sum(dims, keepdim=keepdim).pow(1 / ord).to(dtype or x.dtype)


@decomposition("addcdiv.default")
def _addcdiv(x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x + a / b * value


@decomposition("lerp.Scalar", "lerp.Tensor")
def _lerp(x: Any, end: Any, weight: Any) -> Any:
    return x + (end - x) * weight
