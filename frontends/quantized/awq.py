"""AWQ: integers of 4 bits, packed along the output axis in an order of its own.

For a weight [outs, ins] in `groups` groups: qweight i32 [ins, outs / 8], qzeros i32 [groups, outs / 8], scales
[groups, outs]. A word holds eight outputs, its lowest four bits the first, then those at ORDER. An element is
(code - zero) * scale. Source: AutoAWQ (casper-hansen et al., 2023), version "gemm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from planish.frontends.quantized.base import Held, Method, QuantizedWeight
from planish.frontends.quantized.streams import unpacked
from planish.frontends.quantized.zeros import grouped
from planish.ir import InputError, UnsupportedError
from planish.ir.encodings.grouped import FLOAT_SCALES
from planish.ir.encodings.packing import BitPacking

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output at each place of a word, the lowest bits first."""
_PLACE = torch.tensor(ORDER).argsort()


@dataclass(frozen=True)
class Awq(Method):
    """`zero_points` is what the config says."""

    name: ClassVar[str] = "awq"
    required: ClassVar[tuple[str, ...]] = ("qweight", "scales")
    optional: ClassVar[tuple[str, ...]] = ("qzeros",)
    zero_points: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Awq:
        version, bits = str(config.get("version", "gemm")).lower(), config.get("bits", config.get("w_bit", BITS))
        if version != "gemm" or bits != BITS:
            raise UnsupportedError(
                f"AWQ weights of version {version!r} with {bits} bits are not supported, only version 'gemm' with {BITS} "
                "bits is; quantise the checkpoint that way"
            )
        return cls(zero_points=bool(config.get("zero_point", True)))

    def held(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        if outs % 8:
            raise weight.unsupported(f"has {outs} outputs, which do not fill words of 8")
        qweight = weight.expect("qweight", torch.int32, (ins, outs // 8))
        groups = weight.parts["scales"].shape[0]
        scales = weight.expect("scales", FLOAT_SCALES, (groups, outs))
        if not groups or ins % groups:
            raise weight.unsupported(f"has {groups} groups, which do not divide its {ins} inputs")
        if "qzeros" in weight.parts:
            qzeros = weight.expect("qzeros", torch.int32, (groups, outs // 8))
        elif self.zero_points:
            raise InputError(
                f"the quantised weight {weight.key!r} lacks its qzeros, and the config says that it has zero points; get a "
                "complete copy of the checkpoint"
            )

        def codes(stored: torch.Tensor) -> torch.Tensor:
            """uint8 [outs, rows] of words [rows, outs / 8]."""
            ordered: torch.Tensor = unpacked(stored, outs, BITS).unflatten(-1, (-1, 8))[..., _PLACE].flatten(-2)
            return ordered.T.contiguous()

        return grouped(
            BITS,
            ins // groups,
            lambda: BitPacking(BITS).pack(codes(qweight.read())),
            lambda: scales.read().T.contiguous(),
            (lambda: codes(qzeros.read())) if "qzeros" in weight.parts else None,
            scales.dtype,
        )
