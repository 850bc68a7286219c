"""From a transformers checkpoint folder to a module.

The model is built without weights, traced once over a whole sequence with symbolic batch and length, and its parameters
are bound to the files lazily. Nothing is downloaded and no code from the folder runs.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from planish.frontends import custom_ops
from planish.frontends.attention_interface import IMPLEMENTATION, whole_attention
from planish.frontends.exported import import_exported
from planish.frontends.skeleton import without_weights
from planish.frontends.weights import check_finite as check_params_finite
from planish.frontends.weights import checkpoint_params
from planish.ir import InputError, Module, Param, dense_param
from planish.ir.attributes import Attribute

_ROOT = "model."


def import_checkpoint(folder: str | Path, dtype: torch.dtype = torch.float32, check_finite: bool = True) -> Module:
    """The model of a checkpoint folder as a module with the function "forward".

    `forward(input_ids i64[B, S], attention_mask bool[B, S])` (and token_type_ids where the model takes them) gives
    "logits", or for a model without a head its own outputs. The mask may mark any tokens as padding; positions count
    real tokens only.

    Args:
        folder: a folder with config.json and safetensors weights.
        dtype: the dtype of the computation; weights keep their stored dtype as their encoding.
        check_finite: read every weight once to refuse NaN and infinity.

    Raises:
        InputError: for a folder, config or weight that is missing, damaged or does not fit.
        UnsupportedError: for a model that cannot be represented, listing everything that stands in the way.
    """
    path = Path(folder)
    config = _read_config(path)
    kind, model_class = _model_class(path, config)
    model, buffers = _build(model_class, config, dtype)
    wrapper = _Forward(model, kind)
    program = _trace(wrapper)
    params = checkpoint_params(path, model)
    params.update({name: dense_param(name, value) for name, value in buffers.items() if name not in params})
    _tie(model, params)
    module = import_exported(
        program,
        dynamic_shapes=wrapper.dynamic_shapes,
        params=params,
        root=_ROOT,
        metadata=_metadata(config, kind, model_class),
    )
    if check_finite:
        check_params_finite(module.params)
    return module


def _read_config(folder: Path) -> Any:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a checkpoint")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give the folder of a transformers checkpoint")
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder / 'config.json'} is not a config that transformers knows: {reason}") from error


def _model_class(folder: Path, config: Any) -> tuple[str, Any]:
    named = list(config.architectures or [])
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    name = named[0] if named else causal.get(config.model_type)
    model_class = getattr(transformers, str(name), None)
    if model_class is None:
        raise InputError(f"{folder / 'config.json'} names the architecture {name!r}, which transformers does not have")
    return ("causal_lm" if name in causal.values() else "encoder"), model_class


def _build(model_class: Any, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, torch.Tensor]]:
    config.use_cache = False
    config._attn_implementation = IMPLEMENTATION
    with whole_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return without_weights(lambda: model_class(config), dtype)


class _Forward(torch.nn.Module):
    """The whole-sequence function of a model, with tensors only."""

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self.with_positions = kind == "causal_lm" and "position_ids" in accepted
        batch, tokens = torch.export.Dim("B"), torch.export.Dim("S")
        self.dynamic_shapes = {name: {0: batch, 1: tokens} for name in ("input_ids", "attention_mask")}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        more = {"position_ids": custom_ops.positions(attention_mask)} if self.with_positions else {}
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True, **more
        )
        return {"logits": result.logits}


def _trace(wrapper: _Forward) -> torch.export.ExportedProgram:
    ids, mask = torch.zeros(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.bool)
    with whole_attention(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(wrapper, (ids, mask), dynamic_shapes=wrapper.dynamic_shapes, strict=False)


def _tie(model: Any, params: dict[str, Param]) -> None:
    """Let both names of a tied weight stand for the one parameter that is stored."""
    for a, b in model.all_tied_weights_keys.items():
        if b in params:
            params[a] = params[b]
        elif a in params:
            params[b] = params[a]


def _metadata(config: Any, kind: str, model_class: Any) -> dict[str, Attribute]:
    return {"kind": kind, "architecture": model_class.__name__}
