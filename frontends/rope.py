"""Rotary embeddings whose frequencies depend on the length of the sequence, fixed for one length.

Dynamic NTK scaling and LongRoPE choose their frequencies by the longest position of a call. A program for every length
cannot do that and stay the same function for each token, so that a length is stated once, or the model is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from planish.ir import UnsupportedError


def fix_frequencies(model: torch.nn.Module, length: int | None) -> None:
    """Give every rotary embedding of the model the frequencies that transformers uses for sequences of `length` tokens.

    Raises UnsupportedError when `length` is None and some of them depend on the length.
    """
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if _depends_on_length(kind):
                    _fix(name, module, kind, length, layer_type)
                    kinds[layer_type] = "default"
        elif isinstance(kinds, str) and _depends_on_length(kinds):
            _fix(name, module, kinds, length, None)
            module.rope_type = "default"


def _depends_on_length(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _fix(name: str, module: Any, kind: str, length: int | None, layer_type: str | None) -> None:
    if length is None:
        raise UnsupportedError(
            f"{name} has rotary frequencies of type {kind!r}, which depend on the length of the sequence; "
            "state rope_length, the length to fix them for"
        )
    prefix, more = ("", {}) if layer_type is None else (f"{layer_type}_", {"layer_type": layer_type})
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, torch.device("cpu"), seq_len=length, **more)
    setattr(module, f"{prefix}inv_freq", torch.nn.Buffer(frequencies, persistent=False))
    setattr(module, f"{prefix}attention_scaling", scaling)
