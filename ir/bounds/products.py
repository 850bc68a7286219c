"""Matrix products and convolutions: |A| eB + eA |B| + eA eB + gamma(k) |A| |B|."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from planish.ir.bounds.mode import Call, rule, wide
from planish.ir.bounds.rounding import gamma

Bilinear = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bilinear_error(call: Call, a: torch.Tensor, b: torch.Tensor, count: int, multiply: Bilinear) -> torch.Tensor:
    """The error of a product of sums of `count` terms, for a bilinear `multiply` with positive coefficients."""
    size_a, size_b = wide(a).abs(), wide(b).abs()
    ea, eb = call.mode.error(a), call.mode.error(b)
    found = size_b * gamma(count + 1, call.accumulation)
    if eb is not None:
        found = found + eb
    error = multiply(size_a, found)
    if ea is not None:
        error = error + multiply(ea, size_b if eb is None else size_b + eb)
    return error


def _first(call: Call, *names: str) -> Any:
    return next(call[name] for name in names if name in call.arguments)


@rule("mm.default", "bmm.default", "mv.default", "dot.default", "matmul.default")
def _product(call: Call) -> torch.Tensor:
    a = call["self"]
    b = _first(call, "mat2", "vec", "tensor", "other")
    return bilinear_error(call, a, b, a.shape[-1], torch.matmul) + call.output_rounding


@rule("addmm.default", "baddbmm.default", "addmv.default")
def _product_plus(call: Call) -> torch.Tensor:
    a, b = _first(call, "mat1", "batch1", "mat"), _first(call, "mat2", "batch2", "vec")
    alpha, beta = abs(float(call["alpha"])), abs(float(call["beta"]))
    product = alpha * bilinear_error(call, a, b, a.shape[-1] + 1, torch.matmul)
    return product + beta * call.error(call["self"]) + call.rounding(2)


@rule("linear.default")
def _linear(call: Call) -> torch.Tensor:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    error: torch.Tensor = bilinear_error(call, x, weight, x.shape[-1], lambda a, b: a @ b.t())
    return error + call.output_rounding if bias is None else error + call.error(bias) + call.rounding(2)


@rule("convolution.default")
def _convolution(call: Call) -> torch.Tensor:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    keys = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    settings: list[Any] = [call[k] for k in keys]
    count = math.prod(weight.shape[2:]) * (weight.shape[0] if call["transposed"] else weight.shape[1])

    def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.aten.convolution.default(a.expand(x.shape), b, None, *settings)
        return product

    error: torch.Tensor = bilinear_error(call, x, weight, count, multiply) + call.rounding(2)
    if bias is not None:
        error = error + call.error(bias).expand(bias.shape).view(-1, *[1] * (weight.dim() - 2))
    return error
