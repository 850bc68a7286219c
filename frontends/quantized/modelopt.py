"""NVIDIA Model Optimizer: NVFP4 and FP8, told apart by the tensors of each weight.

NVFP4: weight u8 [outs, ins / 2], weight_scale E4M3 [outs, ins / 16], weight_scale_2 f32 []; an element is the product of
its four-bit float and both scales. FP8: weight E4M3 [outs, ins], weight_scale f32, one number or one a row. Source:
Model-Optimizer (NVIDIA), torch/quantization/qtensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from planish.frontends.quantized.base import Held, Method, QuantizedWeight
from planish.frontends.quantized.floats import E4M3, float8, nvfp4
from planish.frontends.stored import StoredTensor


@dataclass(frozen=True)
class ModelOpt(Method):
    name: ClassVar[str] = "modelopt"
    required: ClassVar[tuple[str, ...]] = ("weight", "weight_scale")
    optional: ClassVar[tuple[str, ...]] = ("weight_scale_2", "pre_quant_scale")
    ignored: ClassVar[tuple[str, ...]] = ("input_scale", "output_scale", "k_scale", "v_scale")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelOpt:
        # In a file of its own the settings lie one level deeper than in config.json.
        settings = config.get("quantization", config)
        algorithm, notes = settings.get("quant_algo"), []
        if algorithm is not None:
            notes.append(
                f"the checkpoint's quant_algo is {algorithm}: where it quantises activations, here they stay as they are"
            )
        if settings.get("kv_cache_quant_algo") is not None:
            cached = settings["kv_cache_quant_algo"]
            notes.append(f"the checkpoint keeps cached keys and values as {cached}, which here stay as they are")
        return cls(notes=tuple(notes))

    def is_quantized(self, fields: Mapping[str, StoredTensor]) -> bool:
        return "weight_scale" in fields

    def held(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        stored = weight.parts["weight"]
        if "pre_quant_scale" in weight.parts:
            raise weight.unsupported("scales its input at run time (pre_quant_scale)")
        if stored.dtype == E4M3:
            return float8(weight, outs, ins)
        if stored.dtype != torch.uint8 or "weight_scale_2" not in weight.parts:
            raise weight.unsupported(f"is {stored} with {', '.join(weight.parts)}, neither NVFP4 nor FP8")
        whole = weight.expect("weight_scale_2", torch.float32, (), (1,))
        return nvfp4(weight, "weight", outs, ins, lambda: whole.read().reshape(()))
