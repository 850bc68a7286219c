"""Rounding whose gradient passes straight through, by itself or with the gradient of the scale.

What is rounded with a scale s, proportional to the numbers themselves, is x + s u, where u is the error in steps. Rounding
has no useful derivative, so u is held at what it is. Then the gradient by x is that of the result (straight through), plus,
for those elements that decide the scale, that of s times u. The published methods leave the latter out; but as errors of
rounding have no preferred direction, it is by the scales that one rotation is better than another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from planish.ir.encodings import Grouped

Rounding: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rounding: Rounding) -> torch.Tensor:
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rounding: Rounding, encoding: Grouped) -> torch.Tensor:
        result = rounding(x)
        ctx.encoding = encoding
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        x, result = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            scale = ctx.encoding.scale(leaf.unflatten(-1, (-1, ctx.encoding.group)))
        steps = ((result - x) * gradient).unflatten(-1, (-1, ctx.encoding.group)).sum(-1, keepdim=True)
        by_scale = torch.where(scale == 0, 0, steps / scale.detach())
        (through,) = torch.autograd.grad(scale, leaf, by_scale)
        return gradient + through, None, None


def straight(x: torch.Tensor, rounding: Rounding, scaled: Grouped | None = None) -> torch.Tensor:
    """`rounding(x)`, of x's shape and dtype, with a gradient.

    Args:
        x: floats.
        rounding: a function of their values.
        scaled: the encoding by whose scales it rounds, where they are to have a gradient too.
    """
    rounded: torch.Tensor = (
        _Straight.apply(x, rounding) if scaled is None else _Scaled.apply(x, rounding, scaled)  # type: ignore[no-untyped-call]
    )
    return rounded
