"""Checkpoints that others quantised: one file a method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from planish.frontends.quantized.awq import Awq
from planish.frontends.quantized.base import Method
from planish.frontends.quantized.compressed_tensors import CompressedTensors
from planish.frontends.quantized.gptq import Gptq
from planish.frontends.quantized.modelopt import ModelOpt
from planish.ir import InputError, UnsupportedError

METHODS: dict[str, Callable[[Mapping[str, Any]], Method]] = {
    m.name: m.of  # type: ignore[type-abstract]
    for m in (Gptq, Awq, CompressedTensors, ModelOpt)
}
_MODELOPT_FILE = "hf_quant_config.json"


def quantization(folder: Path, config: Any) -> Method | None:
    """How the weights of a checkpoint folder were quantised; None when they are dense.

    What the config (of transformers) says is taken off it: the model itself is built as a dense one.

    Raises:
        InputError: for a file or a setting that cannot be read.
        UnsupportedError: for a method that is not supported, naming those that are.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        del config.quantization_config
    elif (folder / _MODELOPT_FILE).is_file():
        try:
            settings = json.loads((folder / _MODELOPT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / _MODELOPT_FILE} cannot be read: {error}") from error
        settings = {"quant_method": ModelOpt.name, **settings} if isinstance(settings, dict) else settings
    else:
        return None
    if not isinstance(settings, Mapping):
        raise InputError(f"the quantization config of {folder} is no mapping; get an intact copy of the checkpoint")
    method = str(settings.get("quant_method"))
    if method not in METHODS:
        raise UnsupportedError(
            f"{folder} holds quantised weights, but quant_method {method!r} is not supported; supported are "
            f"{', '.join(METHODS)}"
        )
    try:
        return METHODS[method](settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the quantization config of {folder} is malformed for {method}: {error}") from error


__all__ = ["METHODS", "Method", "quantization"]
