"""How far two evaluations of a low-bit linear layer may be apart when they add up its groups in another order."""

from __future__ import annotations

import torch

from planish.ir import Grouped, Param


def distance_allowed(weight: Param, bias: Param | None, x: torch.Tensor, x_scales: torch.Tensor) -> torch.Tensor:
    """The largest distance of each result, rows by output features: nothing where all scales of the weight are one.

    Integer sums are exact in any order. Of n groups, a term takes at most n + 3 roundings: by its scale, in n - 1 sums, by
    the scale of the row, and two for the bias.
    """
    assert isinstance(weight.encoding, Grouped)
    values = weight.value().double()
    if bool((weight.storage()["scales"] == 1).all()):
        return torch.zeros(len(x), len(values), dtype=torch.float64)
    group = weight.encoding.group
    groups = x.shape[1] // group
    shape = groups, group
    terms = torch.einsum("mgk,ngk->mng", x.double().unflatten(1, shape), values.unflatten(1, shape))
    size = terms.abs().sum(-1) * x_scales.double().abs()
    if bias is not None:
        size = size + bias.value().double().abs()
    rounding = (groups + 3) * torch.finfo(torch.float32).eps / 2
    return 2 * rounding / (1 - rounding) * size
