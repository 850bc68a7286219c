"""What a low-bit linear layer is exactly, and how far from it an evaluation in float32 may be, in any order of its groups."""

from __future__ import annotations

import torch

from planish.codegen.kernels.blocks.linear_int4_layer import configure
from planish.codegen.kernels.blocks.linear_int4_packing import PRODUCT, BlockInt4Layout, units_of
from planish.codegen.target import BlockLimits
from planish.ir import Grouped, Param


def exact(weight: Param, bias: Param | None, x: torch.Tensor, x_scales: torch.Tensor) -> torch.Tensor:
    """The layer's results [rows, output features] in float64, which holds every product and nearly every sum of them."""
    result = x.double() @ weight.value().double().T * x_scales.double()
    return result if bias is None else result + bias.value().double()


def distance_allowed(
    weight: Param, bias: Param | None, x: torch.Tensor, x_scales: torch.Tensor, limits: BlockLimits | None = None
) -> torch.Tensor:
    """The largest distance of each result from `exact`: nothing where all scales are one and there is no bias.

    Integer sums are exact in any order. Of n groups, a term takes at most n + 3 roundings: by its scale, in n - 1 sums, by
    the scale of the row, and two for the bias; where all scales of the weight are one, only the last three. Where a machine
    of these `limits` counts scales in units, each counts as it is rounded to one. What float64 rounds is a thousandth of a
    rounding more.
    """
    encoding, storage = weight.encoding, weight.storage()
    assert isinstance(encoding, Grouped)
    values, scales, group = weight.value().double(), storage["scales"].double(), encoding.group
    groups = x.shape[1] // group
    shape = groups, group
    whole = bool((scales == 1).all())
    if whole and bias is None and bool((x_scales == 1).all()):
        return torch.zeros(len(x), len(values), dtype=torch.float64)
    terms = torch.einsum("mgk,ngk->mng", x.double().unflatten(1, shape), values.unflatten(1, shape))
    size = terms.sum(-1).abs() if whole else terms.abs().sum(-1)
    moved = torch.zeros_like(size)
    if limits is not None and counts_in_units(weight, len(x), limits):
        units = units_of(storage["scales"]).double()[:, None]
        change = ((scales / units).round() * units / scales - 1).abs()
        moved = torch.einsum("mng,ng->mn", terms.abs(), change)
    size, moved = (part * x_scales.double().abs() for part in (size + moved, moved))
    if bias is not None:
        size = size + bias.value().double().abs()
    rounding = ((0 if whole else groups) + 3.001) * torch.finfo(torch.float32).eps / 2
    return moved + rounding / (1 - rounding) * size


def counts_in_units(weight: Param, rows: int, limits: BlockLimits) -> bool:
    """Whether the 4-bit kernel for blocks of threads takes its schedule of scaled weights."""
    encoding, (outs, ins) = weight.encoding, weight.type.concrete({})
    assert isinstance(encoding, Grouped)
    if encoding.group % PRODUCT:
        return False
    layout = BlockInt4Layout(outs, ins, encoding.group, str(encoding.scale_dtype).removeprefix("torch."))
    config = configure(layout, False, limits)
    return bool(config.planes) and rows > config.scaled
