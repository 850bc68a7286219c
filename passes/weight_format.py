"""Formats of weights by their short names, as recipes write them."""

from __future__ import annotations

from typing import Literal

import torch

from planish.ir.encodings import Encoding, Float8, GroupedInt, Levels, MxFp4, NvFp4
from planish.ir.errors import InputError
from planish.ir.params import Param

Format = Literal[
    1, 2, 3, 4, 5, 6, 7, 8, "sign", "ternary", "ternary2", "stretched", "nvfp4", "mxfp4", "float8", "float8-tensor"
]
"""Bits of integers; a grid of `ir.encodings.levels`; or floats of four or eight bits ("float8" with a scale to a row)."""

FLOATS: dict[str, Encoding] = {
    "nvfp4": NvFp4(),
    "mxfp4": MxFp4(),
    "float8": Float8("row"),
    "float8-tensor": Float8("tensor"),
}
ScaleName = Literal["float16", "bfloat16", "float32", "int8"]
SCALES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
Group = int | Literal["row"]


def encoding_of(param: Param, format: Format, group: Group, scales: ScaleName, zero_points: bool) -> Encoding:
    """The encoding that a format means for a parameter.

    Raises:
        InputError: for zero points on a grid that has none.
        IRError: for a group that does not divide the parameter's last axis, or is out of range.
    """
    if zero_points and not isinstance(format, int):
        raise InputError(f"zero points go with integers, not with the grid {format!r} that {param.name!r} is to have")
    size, kept = int(param.type.shape[-1]) if group == "row" else group, SCALES[scales]
    encoding: Encoding
    if isinstance(format, int):
        encoding = GroupedInt(format, size, kept, zero_points)
    elif format in FLOATS:
        encoding = FLOATS[format]
    else:
        encoding = Levels(format, size, kept)  # type: ignore[arg-type]
    encoding.layout(param.type)
    return encoding
