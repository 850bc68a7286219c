"""A transformers checkpoint folder in the format of compressed-tensors, which vLLM and transformers read.

Integers go to pack-quantized, NVFP4 and MXFP4 to their packed formats, FP8 to float-quantized; see
`frontends.quantized.compressed_tensors` for the tensors of each. Codes and scales are written as they are held, except the
scale of a whole NVFP4 tensor: the format divides by it, so the float32 nearest to its reciprocal is written.

Source: compressed-tensors 0.20 (vLLM project).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from planish.codegen.artifact import TOKENIZER_FILES
from planish.exporting.safetensors_file import Described, Part, write_safetensors
from planish.exporting.source import Source, refused, source_of
from planish.exporting.whole import write_whole
from planish.frontends.quantized.streams import stream, words
from planish.ir import Dense, Float8, GroupedInt, InputError, MxFp4, NvFp4, Param
from planish.model import Model

E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Scheme:
    """How the format stores an encoding: its name there, the settings of the weights, and the tensors by last name."""

    format: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Described]
    make: Callable[[], Mapping[str, torch.Tensor]]


def write(model: Model, target: Path) -> None:
    """See `planish.exporting.export`."""
    source = source_of(model)
    for key, param in source.weights.items():
        rows_of_linear = key in source.linear and key not in source.tables and key.endswith(".weight")
        if not isinstance(param.encoding, Dense) and not rows_of_linear:
            advice = "its runtimes read weights of linear maps only: leave embeddings, and heads tied to them, dense"
            raise refused(key, param, "compressed-tensors", advice)
    schemes = {key: scheme_of(key, param) for key, param in source.weights.items()}
    parts = [_part(key, source.weights[key], scheme) for key, scheme in schemes.items()]
    quantized = {key: scheme for key, scheme in schemes.items() if scheme is not None}
    config = {k: v for k, v in source.config.items() if k != "quantization_config"}
    if quantized:
        config["quantization_config"] = _settings(source, quantized)

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_safetensors(folder / "model.safetensors", parts)
        for name in TOKENIZER_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)

    write_whole(target, fill)


def _settings(source: Source, schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """The quantization_config: a group of modules, by name, for each way of storing them."""
    groups: dict[str, dict[str, Any]] = {}
    for key, scheme in schemes.items():
        group = {"weights": dict(scheme.settings), "format": scheme.format}
        same = groups.setdefault(json.dumps(group, sort_keys=True), {"targets": [], **group})
        same["targets"].append(key.removesuffix(".weight"))
    formats = {group["format"] for group in groups.values()}
    dense = [key for key in source.weights if key in source.linear - source.tables - schemes.keys()]
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups.values())},
        "ignore": [
            *(key.removesuffix(".weight") for key in dense),
            *(["lm_head"] if source.config.get("tie_word_embeddings") else []),
        ],
    }


def _part(key: str, param: Param, scheme: Scheme | None) -> Part:
    if scheme is None:
        assert isinstance(param.encoding, Dense)
        described = param.encoding.dtype, tuple(param.type.concrete({}))
        return Part({key: described}, lambda: {key: param.storage()["values"]})
    module = key.removesuffix("weight")
    return Part(
        {module + name: described for name, described in scheme.tensors.items()},
        lambda: {module + name: tensor for name, tensor in scheme.make().items()},
    )


def scheme_of(key: str, param: Param) -> Scheme | None:
    """How to store a weight [outs, ins]; None for a dense one. Raises InputError for what the format cannot hold."""
    encoding = param.encoding
    if isinstance(encoding, Dense):
        return None
    outs, ins = param.type.concrete({})
    for kind, describe in _KINDS.items():
        if isinstance(encoding, kind):
            scheme: Scheme = describe(param, outs, ins)
            return scheme
    raise refused(key, param, "compressed-tensors", "quantise it to integers of 1 to 8 bits, NVFP4, MXFP4 or FP8")


def _integers(param: Param, outs: int, ins: int) -> Scheme:
    encoding = param.encoding
    assert isinstance(encoding, GroupedInt)
    bits, groups = encoding.bits, ins // encoding.group
    if encoding.scale_dtype == torch.int8:
        raise refused(
            param.name, param, "compressed-tensors", "quantise it with scales of float16, bfloat16 or float32"
        )
    sizes = {"strategy": "channel"} if groups == 1 else {"strategy": "group", "group_size": encoding.group}
    tensors: dict[str, Described] = {
        "weight_packed": (torch.int32, (outs, words(ins, bits))),
        "weight_scale": (encoding.scale_dtype, (outs, groups)),
        "weight_shape": (torch.int64, (2,)),
    }
    if encoding.zero_points:
        tensors["weight_zero_point"] = (torch.int32, (words(outs, bits), groups))

    def make() -> dict[str, torch.Tensor]:
        storage = param.storage()
        made = {
            "weight_packed": stream(storage["values"], ins, bits),
            "weight_scale": storage["scales"],
            "weight_shape": torch.tensor([outs, ins]),
        }
        if encoding.zero_points:
            zeros = encoding.packing.unpack(storage["zeros"], groups)
            made["weight_zero_point"] = stream(encoding.packing.pack(zeros.T), outs, bits).T
        return made

    settings = {"num_bits": bits, "type": "int", "symmetric": not encoding.zero_points, "dynamic": False, **sizes}
    return Scheme("pack-quantized", settings, tensors, make)


def _nvfp4(param: Param, outs: int, ins: int) -> Scheme:
    tensors: dict[str, Described] = {
        "weight_packed": (torch.uint8, (outs, ins // 2)),
        "weight_scale": (E4M3, (outs, ins // NvFp4.block)),
        "weight_global_scale": (torch.float32, (1,)),
    }

    def make() -> dict[str, torch.Tensor]:
        storage = param.storage()
        whole = storage["tensor_scale"].reshape(1).reciprocal()
        if not bool(torch.isfinite(whole).all()) or not bool(whole.all()):
            raise InputError(
                f"the scale {float(storage['tensor_scale'])} of {param.name!r} has no reciprocal in float32"
            )
        return {
            "weight_packed": storage["values"],
            "weight_scale": storage["scales"].view(E4M3),
            "weight_global_scale": whole,
        }

    sizes = {"strategy": "tensor_group", "group_size": NvFp4.block, "scale_dtype": "torch.float8_e4m3fn"}
    return Scheme("nvfp4-pack-quantized", {**_float(4), **sizes}, tensors, make)


def _mxfp4(param: Param, outs: int, ins: int) -> Scheme:
    tensors: dict[str, Described] = {
        "weight_packed": (torch.uint8, (outs, ins // 2)),
        "weight_scale": (torch.uint8, (outs, ins // MxFp4.block)),
    }

    def make() -> dict[str, torch.Tensor]:
        storage = param.storage()
        return {"weight_packed": storage["values"], "weight_scale": storage["scales"]}

    sizes = {"strategy": "group", "group_size": MxFp4.block, "scale_dtype": "torch.uint8"}
    return Scheme("mxfp4-pack-quantized", {**_float(4), **sizes}, tensors, make)


def _fp8(param: Param, outs: int, ins: int) -> Scheme:
    encoding = param.encoding
    assert isinstance(encoding, Float8)
    shape = (outs, 1) if encoding.scaled == "row" else (1,)
    tensors: dict[str, Described] = {"weight": (E4M3, (outs, ins)), "weight_scale": (torch.float32, shape)}

    def make() -> dict[str, torch.Tensor]:
        storage = param.storage()
        return {"weight": storage["values"].view(E4M3), "weight_scale": storage["scales"].reshape(shape)}

    strategy = "channel" if encoding.scaled == "row" else "tensor"
    return Scheme("float-quantized", {**_float(8), "strategy": strategy}, tensors, make)


def _float(bits: int) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "symmetric": True, "dynamic": False}


_KINDS: dict[type, Callable[[Param, int, int], Scheme]] = {
    GroupedInt: _integers,
    NvFp4: _nvfp4,
    MxFp4: _mxfp4,
    Float8: _fp8,
}
