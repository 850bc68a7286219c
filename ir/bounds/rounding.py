"""Unit roundoffs, and bounds on sums."""

from __future__ import annotations

import math

import torch

UNIT: dict[torch.dtype, float] = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# Largest number below which every integer is held exactly.
INTEGERS: dict[torch.dtype, float] = {dtype: 1.0 / unit for dtype, unit in UNIT.items()}

# What underflow can cost: the smallest normal number where a kernel may flush subnormals to zero, else the smallest
# subnormal one.
UNDERFLOW: dict[torch.dtype, float] = {
    torch.float64: 2.0**-1022,
    torch.float32: 2.0**-126,
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-126,
}


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number of the dtype; 0 for integers and truth values."""
    return UNIT.get(dtype, 0.0)


def gamma(count: float, unit: float) -> float:
    """The relative error that `count` roundings in a row can make; infinite where the bound means nothing."""
    product = count * unit
    return product / (1.0 - product) if product < 1.0 else math.inf


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype sums of a dtype are carried: half-width floats are summed in float32 and rounded once."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
