"""Fake quantisation with learned scales: a forward of few levels, and a gradient for it.

A weight W is cut into groups along its last axis, each with a learned alpha > 0; x = W / alpha. The scale that the encoding
stores is `ratio` times alpha, clamped to at least LEAST_ALPHA and rounded to the encoding's dtype, and codes are the nearest
ones under that very scale. So the forward value is, bit for bit, what the encoding built from the same codes decodes to.
With q the value in units of alpha, as alpha then is:

| grid | q | ratio | clip of x | first alpha |
|---|---|---|---|---|
| sign | -1, 1 | 1 | 1 | mean of abs(W) |
| ternary | -2/3, 0, 2/3 | 2/3 | 0.99 | largest abs(W) |
| stretched | -3/4, -1/4, 1/4, 3/4 | 1/4 | 0.99 | largest abs(W) |
| integers of b bits | -P - 1 ... P, where P = 2^(b-1) - 1 | 1 | -P - 1 ... P | largest abs(W) / P |

Rounding has no useful derivative, so the gradient is that of a *surrogate* in which the rounding done at the current
point (W0, alpha0) stays what it was:

    S(W, alpha) = alpha * (clip(W / alpha) + r),    r = q(x0) - clip(x0),
    S(W, alpha) = alpha * (clip(W / alpha0) + r)    for signs (elastic binarisation).

By W that is 1 within the clip and 0 outside; by alpha it is q - x within and q outside, for signs q everywhere. The clamp and
the rounding of scales pass the gradient on as it is. The gradient of alpha is then multiplied by
1 / sqrt(elements of W * P), with P = 1 for the grids without integers (the factor of LSQ, over the whole tensor).

Saturated ternary elements have q = 2/3, the derivative of the surrogate; the published code of ParetoQ takes 1 there.

Sources: ParetoQ (Liu et al., 2025) and its code; LSQ (Esser et al., 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from planish.ir.encodings import Encoding, Grouped, GroupedInt, Levels
from planish.ir.encodings.grouped import Rounded
from planish.ir.errors import InputError
from planish.passes.training.straight import straight

LEAST_ALPHA = 1e-5
STRETCHED_CLIP = 0.99


@dataclass(frozen=True)
class Quantizer:
    """How a grouped encoding is trained; see the table above.

    Attributes:
        encoding: what the result is stored in.
        ratio: the encoding's scale over alpha.
        clip: the smallest and the largest x within which a weight gets a gradient.
        first: how the first alpha follows from the magnitudes of a group.
        levels: P of the gradient's factor.
        elastic: whether alpha is fixed in the clip of the surrogate, as for signs.
    """

    encoding: Grouped
    ratio: float
    clip: tuple[float, float]
    first: Literal["mean", "largest"]
    levels: int = 1
    elastic: bool = False

    def first_alpha(self, weight: torch.Tensor) -> torch.Tensor:
        """The alpha to begin with, (..., groups, 1), of the weight's dtype."""
        size: torch.Tensor = weight.unflatten(-1, (-1, self.encoding.group)).abs()
        if self.first == "mean":
            return size.mean(-1, keepdim=True)
        return size.amax(-1, keepdim=True) / self.levels

    def scales(self, alpha: torch.Tensor) -> torch.Tensor:
        """The scales that are stored for `alpha`, of its shape."""
        return self.encoding.kept(alpha.detach().clamp(min=LEAST_ALPHA) * self.ratio)

    def rounded(self, weight: torch.Tensor, alpha: torch.Tensor) -> Rounded:
        """The codes and scales of a weight; `encoding.packed` makes storage of them."""
        scales = self.scales(alpha)
        groups = weight.detach().to(torch.float64).unflatten(-1, (-1, self.encoding.group))
        return Rounded(self.encoding.quantize(groups, scales.to(torch.float64)), scales)

    def __call__(self, weight: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The fake-quantised weight, in its dtype (float32 or float64), differentiable by both arguments."""
        quantised: torch.Tensor = _FakeQuantise.apply(weight, alpha, self)  # type: ignore[no-untyped-call]
        return quantised


class _FakeQuantise(torch.autograd.Function):
    """Quantizer.__call__ with the gradient of the surrogate."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, alpha: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
        rounded = quantizer.rounded(weight, alpha)
        ctx.quantizer = quantizer
        ctx.save_for_backward(weight, rounded.codes, rounded.scales)
        levels = quantizer.encoding.grid.levels(rounded.codes)
        # As `Grouped.decode` computes it.
        return (levels.to(weight.dtype) * rounded.scales.to(weight.dtype)).flatten(-2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        quantizer: Quantizer = ctx.quantizer
        weight, codes, scales = ctx.saved_tensors
        low, high = quantizer.clip
        groups = weight.unflatten(-1, (-1, quantizer.encoding.group))
        gradient = gradients[0].unflatten(-1, (-1, quantizer.encoding.group))
        x = groups * quantizer.ratio / scales.to(weight.dtype)
        inside = (x >= low) & (x <= high)
        slope = quantizer.encoding.grid.levels(codes).to(weight.dtype) * quantizer.ratio
        if not quantizer.elastic:
            slope = slope - torch.where(inside, x, 0)
        factor = 1 / math.sqrt(weight.numel() * quantizer.levels)
        by_alpha = (gradient * slope).sum(-1, keepdim=True) * factor
        return (gradient * inside).flatten(-2), by_alpha, None


def quantizer_of(encoding: Encoding, name: str) -> Quantizer:
    """How the parameter `name` is trained for an encoding; raises InputError for one that has no learned scales."""
    if isinstance(encoding, Grouped) and encoding.scale_dtype == torch.int8:
        raise InputError(
            f"parameter {name!r} cannot be trained for {encoding}: a learned scale is a number of its own, and scales of "
            f"int8 hang together in blocks; choose scales of float16"
        )
    if isinstance(encoding, Levels):
        if encoding.kind == "sign":
            return Quantizer(encoding, 1.0, (-1.0, 1.0), "mean", elastic=True)
        ratio = 1 / 4 if encoding.kind == "stretched" else 2 / 3
        return Quantizer(encoding, ratio, (-STRETCHED_CLIP, STRETCHED_CLIP), "largest")
    if isinstance(encoding, GroupedInt) and not encoding.zero_points and encoding.bits > 1:
        largest = encoding.zero - 1
        return Quantizer(encoding, 1.0, (-encoding.zero, largest), "largest", levels=largest)
    raise InputError(
        f"parameter {name!r} cannot be trained for {encoding}: learned scales go with signs, ternary and stretched levels "
        f"and with integers of 2 to 8 bits without zero points; choose one of these, or quantise it after training"
    )


def round_straight(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` as a storage of `dtype` holds it, in its own dtype; the gradient passes straight through."""
    return x if dtype == x.dtype else straight(x, lambda wide: wide.to(dtype).to(wide.dtype))
