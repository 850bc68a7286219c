"""How far two evaluations of a low-bit linear layer may be apart when they add up its groups in another order."""

from __future__ import annotations

import torch

from planish.codegen.kernels.blocks.linear_int4_layer import configure
from planish.codegen.kernels.blocks.linear_int4_packing import PRODUCT, BlockInt4Layout, units_of
from planish.codegen.target import BlockLimits
from planish.ir import Grouped, Param


def distance_allowed(
    weight: Param, bias: Param | None, x: torch.Tensor, x_scales: torch.Tensor, limits: BlockLimits | None = None
) -> torch.Tensor:
    """The largest distance of each result, rows by output features: nothing where all scales of the weight are one.

    Integer sums are exact in any order. Of n groups, a term takes at most n + 3 roundings: by its scale, in n - 1 sums, by
    the scale of the row, and two for the bias. Where a machine of these `limits` counts scales in units, each counts as
    it is rounded to one.
    """
    encoding, storage = weight.encoding, weight.storage()
    assert isinstance(encoding, Grouped)
    values, scales, group = weight.value().double(), storage["scales"].double(), encoding.group
    groups = x.shape[1] // group
    shape = groups, group
    if bool((scales == 1).all()):
        return torch.zeros(len(x), len(values), dtype=torch.float64)
    terms = torch.einsum("mgk,ngk->mng", x.double().unflatten(1, shape), values.unflatten(1, shape))
    size = terms.abs().sum(-1)
    moved = torch.zeros_like(size)
    if limits is not None and counts_in_units(weight, len(x), limits):
        units = units_of(storage["scales"]).double()[:, None]
        change = ((scales / units).round() * units / scales - 1).abs()
        moved = torch.einsum("mng,ng->mn", terms.abs(), change)
    size, moved = (part * x_scales.double().abs() for part in (size + moved, moved))
    if bias is not None:
        size = size + bias.value().double().abs()
    rounding = (groups + 3) * torch.finfo(torch.float32).eps / 2
    return moved + 2 * rounding / (1 - rounding) * size


def counts_in_units(weight: Param, rows: int, limits: BlockLimits) -> bool:
    """Whether the 4-bit kernel for blocks of threads takes its schedule of scaled weights."""
    encoding, (outs, ins) = weight.encoding, weight.type.concrete({})
    assert isinstance(encoding, Grouped)
    if encoding.group % PRODUCT:
        return False
    layout = BlockInt4Layout(outs, ins, encoding.group, str(encoding.scale_dtype).removeprefix("torch."))
    config = configure(layout, False, limits)
    return bool(config.planes) and rows > config.scaled
