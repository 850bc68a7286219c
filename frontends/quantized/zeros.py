"""Zero points as files of integer methods hold them: codes for every group, also where all of them say the same."""

from __future__ import annotations

from collections.abc import Callable

import torch

from planish.frontends.quantized.base import Held
from planish.ir.encodings import GroupedInt
from planish.ir.encodings.packing import BitPacking


def grouped(
    bits: int,
    group: int,
    values: Callable[[], torch.Tensor],
    scales: Callable[[], torch.Tensor],
    zeros: Callable[[], torch.Tensor] | None,
    scale_dtype: torch.dtype,
) -> Held:
    """Integers whose packed codes, scales [outs, groups] and zero points (uint8 codes [outs, groups]) are read by these.

    Zero points that are all 2^(bits-1), which is where integers around zero have theirs, are left out.
    """
    if zeros is None or bool((zeros() == 1 << (bits - 1)).all()):
        return GroupedInt(bits, group, scale_dtype), lambda: {"values": values(), "scales": scales()}
    packing = BitPacking(bits)
    return (
        GroupedInt(bits, group, scale_dtype, zero_points=True),
        lambda: {"values": values(), "scales": scales(), "zeros": packing.pack(zeros())},
    )
