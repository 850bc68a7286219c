"""GPTQ: integers of 2, 3, 4 or 8 bits, packed along the input axis, with zero points packed along the output axis.

For a weight [outs, ins] in `groups` groups: qweight i32 [ins * bits / 32, outs], qzeros i32 [groups, outs * bits / 32],
scales [groups, outs], g_idx i32 [ins], the group of each input. An element is (code - zero) * scale. The first version of
the format stores a zero point less one; "gptq_v2" stores it as it is. Sources: AutoGPTQ (PanQiWei et al., 2023),
GPTQModel (ModelCloud).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from planish.frontends.quantized.base import Held, Method, QuantizedWeight
from planish.frontends.quantized.streams import packed, unpacked, words
from planish.frontends.quantized.zeros import grouped
from planish.frontends.stored import StoredTensor
from planish.ir import InputError, UnsupportedError
from planish.ir.encodings.grouped import FLOAT_SCALES

BITS = (2, 3, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point, by the config's checkpoint_format."""


@dataclass(frozen=True)
class Gptq(Method):
    """`offset` is what is added to a stored zero point."""

    name: ClassVar[str] = "gptq"
    required: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    optional: ClassVar[tuple[str, ...]] = ("g_idx",)
    offset: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Gptq:
        version = config.get("checkpoint_format", config.get("format", "gptq"))
        if version not in VERSIONS:
            raise UnsupportedError(
                f"GPTQ weights in the layout {version!r} are not supported, only {' and '.join(VERSIONS)} are; convert the "
                "checkpoint to one of these with GPTQModel"
            )
        return cls(offset=VERSIONS[version])

    def says_nothing(self, tensor: StoredTensor) -> bool:
        # AutoGPTQ gives every layer a bias, of zeros where the model has none.
        return tensor.key.endswith(".bias") and not bool(tensor.read().any())

    def held(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        rows = weight.parts["qweight"].shape[0]
        bits = next((b for b in BITS if words(ins, b) == rows and ins * b % 32 == 0), None)
        if bits is None:
            raise InputError(
                f"tensor {weight.key.removesuffix('weight')}qweight has {rows} rows of words, which hold {ins} codes of no "
                f"supported width ({', '.join(map(str, BITS))} bits); get a checkpoint that fits the config"
            )
        qweight = weight.expect("qweight", torch.int32, (rows, outs))
        groups = weight.parts["scales"].shape[0]
        scales = weight.expect("scales", FLOAT_SCALES, (groups, outs))
        qzeros = weight.expect("qzeros", torch.int32, (groups, words(outs, bits)))
        if not groups or ins % groups:
            raise weight.unsupported(f"has {groups} groups, which do not divide its {ins} inputs")
        self._check_order(weight, ins, ins // groups)

        def zeros() -> torch.Tensor:
            stored = unpacked(qzeros.read(), outs, bits)
            if self.offset and bool((stored == (1 << bits) - 1).any()):
                raise weight.unsupported(
                    f"stores the zero point {(1 << bits) - 1} in GPTQ's first format, where it means {1 << bits} or 0"
                )
            return (stored + self.offset).T.contiguous()

        return grouped(
            bits,
            ins // groups,
            lambda: packed(qweight.read().T, ins, bits),
            lambda: scales.read().T.contiguous(),
            zeros,
            scales.dtype,
        )

    def _check_order(self, weight: QuantizedWeight, ins: int, group: int) -> None:
        if "g_idx" not in weight.parts:
            return
        order = weight.expect("g_idx", (torch.int32, torch.int64), (ins,)).read()
        if not torch.equal(order.long(), torch.arange(ins) // group):
            raise weight.unsupported("has its inputs in the order of activations (desc_act), not in consecutive groups")
