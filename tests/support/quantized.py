"""Checkpoints as other packages quantise them, written number by number from how their formats are described."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from planish.frontends.quantized import Method
from planish.frontends.quantized.base import QuantizedWeight
from planish.frontends.stored import stored_tensors
from planish.ir import Param

Made = tuple[Mapping[str, torch.Tensor], torch.Tensor]
"""The tensors of a weight by their last names, and the weight that they stand for."""


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes one after another in a number of many bits, cut into int32 words from its lowest end."""
    whole = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    return torch.from_numpy(np.frombuffer(whole.to_bytes(4 * count, "little"), dtype="<i4").copy())


def integers(
    generator: torch.Generator, outs: int, ins: int, bits: int, group: int, zero: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random codes [outs, ins], float16 scales and zero points [outs, groups] (all `zero` if given) and the weight."""
    codes = torch.randint(0, 1 << bits, (outs, ins), generator=generator)
    scales = (torch.randn(outs, ins // group, generator=generator) / (4 << bits)).half()
    zeros = torch.randint(1, 1 << bits, (outs, ins // group), generator=generator)
    zeros = zeros if zero is None else torch.full_like(zeros, zero)
    levels = codes - zeros.repeat_interleave(group, 1)
    return codes, scales, zeros, levels.float() * scales.float().repeat_interleave(group, 1)


def gptq(
    generator: torch.Generator,
    outs: int,
    ins: int,
    bits: int = 4,
    group: int = 32,
    zero: int | None = None,
    added: int = 1,
) -> Made:
    """GPTQ's tensors; a stored zero point is less by `added`."""
    codes, scales, zeros, weight = integers(generator, outs, ins, bits, group, zero)
    return {
        "qweight": torch.stack([words(row, bits) for row in codes], 1),
        "qzeros": torch.stack([words(row - added, bits) for row in zeros.T]),
        "scales": scales.T.contiguous(),
        "g_idx": (torch.arange(ins) // group).int(),
    }, weight


def awq(generator: torch.Generator, outs: int, ins: int, group: int = 32, zero: int | None = None) -> Made:
    """AWQ's tensors: the words of eight neighbouring outputs hold them in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    codes, scales, zeros, weight = integers(generator, outs, ins, 4, group, zero)

    def packed(rows: torch.Tensor) -> torch.Tensor:
        ordered = torch.stack([rows[:, 8 * (n // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[n % 8]] for n in range(outs)], 1)
        return torch.stack([words(row, 4) for row in ordered])

    return {"qweight": packed(codes.T), "qzeros": packed(zeros.T), "scales": scales.T.contiguous()}, weight


def nvfp4(generator: torch.Generator, outs: int, ins: int) -> Made:
    """Model Optimizer's NVFP4: the even column in the lower half of a byte."""
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    codes = torch.randint(0, 16, (outs, ins), generator=generator)
    scales = (torch.rand(outs, ins // 16, generator=generator) * 400).to(torch.float8_e4m3fn)
    whole = torch.rand((), generator=generator) * 1e-3
    values = magnitudes[codes % 8] * torch.where(codes >= 8, -1.0, 1.0)
    weight = values * scales.double().repeat_interleave(16, 1) * whole.double()
    packed = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    return {"weight": packed, "weight_scale": scales, "weight_scale_2": whole}, weight.float()


def fp8(generator: torch.Generator, outs: int, ins: int, scales: tuple[int, ...] = ()) -> Made:
    """E4M3 numbers with float32 scales of that shape."""
    values = torch.randn(outs, ins, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(scales, generator=generator)
    weight = values.double() * scale.double().reshape((outs, 1) if scale.numel() > 1 else ())
    return {"weight": values, "weight_scale": scale}, weight.float()


def param_of(folder: Path, tensors: Mapping[str, torch.Tensor], method: Method, outs: int, ins: int) -> Param:
    """The parameter that a method makes of a module's tensors, written to a checkpoint of their own."""
    save_file({f"layer.{k}": v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    weight = method.gather(stored_tensors(folder))["layer.weight"]
    assert isinstance(weight, QuantizedWeight)
    return weight.param("layer.weight", torch.empty(outs, ins, device="meta"), torch.nn.Linear(1, 1))


def requantize(
    folder: Path, settings: Mapping[str, Any], make: Callable[[int, int], Made], ignore: str = "lm_head"
) -> dict[str, torch.Tensor]:
    """Give a saved checkpoint quantised weights for its linear maps but the ignored one; returns all its weights, dense."""
    stored = load_file(folder / "model.safetensors")
    dense, written = dict(stored), dict(stored)
    for key, tensor in stored.items():
        module = key.removesuffix(".weight")
        if tensor.dim() == 2 and "embed" not in key and module != ignore:
            parts, dense[key] = make(*tensor.shape)
            del written[key]
            written.update({f"{module}.{name}": part for name, part in parts.items()})
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return dense
