"""compressed-tensors: packed or plain integers, FP8, NVFP4 and MXFP4, told apart by the tensors of each weight.

For a weight [outs, ins]:
- packed integers: weight_packed i32 [outs, words of ins codes], weight_scale [outs, groups], weight_shape, and perhaps
  weight_zero_point i32 [words of outs codes, groups]; codes and zero points are offset by 2^(bits-1).
- plain integers: weight i8 [outs, ins], weight_scale, perhaps weight_zero_point i8 like it.
- FP8: weight E4M3 [outs, ins], weight_scale.
- MXFP4: weight_packed u8 [outs, ins / 2], weight_scale u8 [outs, ins / 32], powers of two (E8M0).
- NVFP4: weight_packed u8 [outs, ins / 2], weight_scale E4M3 [outs, ins / 16], weight_global_scale f32 [1], by which scales
  are *divided*. An encoding multiplies, so it holds the float32 nearest to the reciprocal, as vLLM computes it too.

Source: compressed-tensors 0.20 (vLLM project), compressors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from planish.frontends.quantized.base import Held, Method, QuantizedWeight
from planish.frontends.quantized.floats import E4M3, float8, nvfp4
from planish.frontends.quantized.streams import packed, unpacked, words
from planish.frontends.stored import StoredTensor
from planish.ir import InputError, UnsupportedError
from planish.ir.encodings import GroupedInt, MxFp4
from planish.ir.encodings.grouped import FLOAT_SCALES
from planish.ir.encodings.packing import BitPacking

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
    "dense",
)


@dataclass(frozen=True)
class CompressedTensors(Method):
    """`bits` are the widths that the config's schemes of integers name."""

    name: ClassVar[str] = "compressed-tensors"
    required: ClassVar[tuple[str, ...]] = ("weight_scale",)
    optional: ClassVar[tuple[str, ...]] = (
        "weight", "weight_packed", "weight_shape", "weight_zero_point", "weight_global_scale", "weight_g_idx",
    )  # fmt: skip
    ignored: ClassVar[tuple[str, ...]] = (
        "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "k_scale", "v_scale",
        "q_scale", "k_zero_point", "v_zero_point",
    )  # fmt: skip
    bits: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CompressedTensors:
        groups = config.get("config_groups")
        if not isinstance(groups, Mapping) or not all(isinstance(g, Mapping) for g in groups.values()):
            raise InputError("the config's quantization_config has no config_groups that say how weights are quantised")
        formats = {str(f) for f in (config.get("format"), *(g.get("format") for g in groups.values())) if f is not None}
        sparse = (config.get("sparsity_config") or {}).get("format", "dense")
        for found, known in ((formats - set(FORMATS), FORMATS), ({sparse} - {"dense"}, ("dense",))):
            if found:
                raise UnsupportedError(
                    f"the compressed-tensors format {sorted(found)[0]!r} is not supported, only {', '.join(known)} are; give "
                    "the checkpoint in floating point or compress it another way"
                )
        if config.get("transform_config"):
            raise UnsupportedError(
                "the checkpoint applies transforms at run time (transform_config), which are not supported; give the "
                "checkpoint before they were applied"
            )
        weights = [g["weights"] for g in groups.values() if g.get("weights")]
        if not weights:
            raise UnsupportedError(
                "the checkpoint quantises activations alone, which is not supported; give it in floating point"
            )
        notes = []
        if any(g.get("input_activations") or g.get("output_activations") for g in groups.values()):
            notes.append("the checkpoint also quantises activations, which here stay as they are")
        if config.get("kv_cache_scheme"):
            notes.append("the checkpoint also quantises cached keys and values, which here stay as they are")
        bits = frozenset(int(w.get("num_bits", 8)) for w in weights if w.get("type", "int") == "int")
        return cls(notes=tuple(notes), bits=bits)

    def is_quantized(self, fields: Mapping[str, StoredTensor]) -> bool:
        return "weight_scale" in fields or "weight_packed" in fields

    def held(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        stored = weight.parts.get("weight_packed", weight.parts.get("weight"))
        if stored is None:
            raise InputError(f"the quantised weight {weight.key!r} has scales but no codes; get a complete checkpoint")
        if "weight_packed" in weight.parts:
            return self._floats(weight, outs, ins) if stored.dtype == torch.uint8 else self._packed(weight, outs, ins)
        if stored.dtype == E4M3:
            return float8(weight, outs, ins)
        if stored.dtype == torch.int8:
            return self._plain(weight, outs, ins)
        raise weight.unsupported(f"is stored as {stored} with scales beside it: it was never compressed")

    def _floats(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        if "weight_global_scale" in weight.parts:
            whole = weight.expect("weight_global_scale", torch.float32, (), (1,))
            return nvfp4(weight, "weight_packed", outs, ins, lambda: whole.read().reshape(()).reciprocal())
        if ins % MxFp4.block:
            raise weight.unsupported(f"has blocks of {MxFp4.block}, which do not divide its {ins} inputs")
        values = weight.expect("weight_packed", torch.uint8, (outs, ins // 2))
        scales = weight.expect("weight_scale", torch.uint8, (outs, ins // MxFp4.block))
        return MxFp4(), lambda: {"values": values.read(), "scales": scales.read()}

    def _packed(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        columns = weight.parts["weight_packed"].shape[-1]
        bits = next((b for b in sorted(self.bits) if 1 <= b <= 8 and words(ins, b) == columns), None)
        if bits is None:
            named = ", ".join(map(str, sorted(self.bits)))
            raise InputError(
                f"tensor {weight.parts['weight_packed'].key!r} has rows of {columns} words, which hold {ins} codes of "
                f"none of the widths that the config names ({named} bits) in a dense stream; "
                "get a checkpoint that fits its config"
            )
        stored = weight.expect("weight_packed", torch.int32, (outs, columns))
        group, scales = self._scales(weight, outs, ins)
        if "weight_shape" in weight.parts:
            shape = weight.expect("weight_shape", (torch.int64, torch.int32), (2,)).read().tolist()
            if shape != [outs, ins]:
                raise InputError(
                    f"the quantised weight {weight.key!r} says it is {shape}, but the model wants [{outs}, {ins}]"
                )
        self._check_order(weight, ins, group)
        encoding = GroupedInt(bits, group, scales.dtype, "weight_zero_point" in weight.parts)
        if not encoding.zero_points:
            return encoding, lambda: {
                "values": packed(stored.read(), ins, bits),
                "scales": _by_row(scales.read(), outs, ins // group),
            }
        points = weight.expect("weight_zero_point", torch.int32, (words(outs, bits), ins // group))
        return encoding, lambda: {
            "values": packed(stored.read(), ins, bits),
            "scales": _by_row(scales.read(), outs, ins // group),
            "zeros": BitPacking(bits).pack(unpacked(points.read().T, outs, bits).T.contiguous()),
        }

    def _plain(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        stored = weight.expect("weight", torch.int8, (outs, ins))
        group, scales = self._scales(weight, outs, ins)
        encoding = GroupedInt(8, group, scales.dtype, "weight_zero_point" in weight.parts)

        def codes(tensor: StoredTensor) -> torch.Tensor:
            return (tensor.read().to(torch.int16) + encoding.zero).to(torch.uint8)

        if not encoding.zero_points:
            return encoding, lambda: {"values": codes(stored), "scales": _by_row(scales.read(), outs, ins // group)}
        points = weight.expect("weight_zero_point", torch.int8, scales.shape)
        return encoding, lambda: {
            "values": codes(stored),
            "scales": _by_row(scales.read(), outs, ins // group),
            "zeros": _by_row(codes(points), outs, ins // group),
        }

    def _scales(self, weight: QuantizedWeight, outs: int, ins: int) -> tuple[int, StoredTensor]:
        """The elements of a group, and the scales: [outs, groups], or one number for a row or for all of them."""
        shape = weight.parts["weight_scale"].shape
        groups = shape[1] if len(shape) == 2 else 1
        if not groups or ins % groups:
            raise weight.unsupported(f"has {groups} groups, which do not divide its {ins} inputs")
        shapes = ((outs, groups), *(((outs,), (), (1,), (1, 1)) if groups == 1 else ()))
        return ins // groups, weight.expect("weight_scale", FLOAT_SCALES, *shapes)

    def _check_order(self, weight: QuantizedWeight, ins: int, group: int) -> None:
        if "weight_g_idx" not in weight.parts:
            return
        order = weight.expect("weight_g_idx", (torch.int32, torch.int64), (ins,)).read()
        if not torch.equal(order.long(), torch.arange(ins) // group):
            raise weight.unsupported("has its inputs in the order of activations (actorder), not in consecutive groups")


def _by_row(tensor: torch.Tensor, outs: int, groups: int) -> torch.Tensor:
    """[outs, groups] of what may be stored once for all of them."""
    return tensor.reshape(-1, groups).expand(outs, groups).contiguous()
