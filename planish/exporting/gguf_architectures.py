"""What GGUF calls the architectures that can be written, and the settings that llama.cpp reads for them.

An architecture is here if llama.cpp computes exactly what transformers does for every config that passes the checks; what
a config asks for beyond that is refused. Source: convert_hf_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from planish.ir import InputError


@dataclass(frozen=True)
class Architecture:
    """`name` in GGUF. Where `paired`, rotary positions turn neighbouring elements of a head, not element i with i + size / 2,
    and the rows of queries and keys are written in that order."""

    name: str
    paired: bool


ARCHITECTURES = {
    "llama": Architecture("llama", paired=True),
    "mistral": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2", paired=False),
    "qwen3": Architecture("qwen3", paired=False),
}
"""By model_type of the config."""


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config with transformers' defaults filled in.

    Raises:
        InputError: for another one, or for settings that GGUF has no words for.
    """
    found = ARCHITECTURES.get(str(config.get("model_type")))
    if found is None:
        raise InputError(
            f"GGUF files of model_type {config.get('model_type')!r} are not written, only those of {', '.join(ARCHITECTURES)}"
        )
    rope = config.get("rope_parameters") or {}
    asked = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "rope_type": rope.get("rope_type", "default") != "default",
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "sliding_window": bool(config.get("sliding_window")) and config.get("use_sliding_window", True),
        "mlp_bias": bool(config.get("mlp_bias")),
        "attention_bias": bool(config.get("attention_bias")) and found.name != "llama",
    }
    refused = sorted(name for name, stands in asked.items() if stands)
    if refused:
        raise InputError(
            f"the config's {', '.join(refused)} of a {config['model_type']} cannot be said in a GGUF file; export it as "
            "compressed-tensors instead"
        )
    return found


def settings(config: Mapping[str, Any]) -> dict[str, int | float]:
    """What llama.cpp reads of such a model, by the names of GGUF without the architecture's prefix."""
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    size = int(config.get("head_dim") or hidden // heads)
    return {
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": hidden,
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": size,
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "vocab_size": int(config["vocab_size"]),
    }


def paired_rows(key: str, made: Mapping[str, int | float]) -> torch.Tensor | None:
    """The order in which the rows of a weight or bias of queries or keys are written; None for any other tensor.

    Element i of a head turns with element i + size / 2; these two are written next to each other.
    """
    part = key.rpartition(".")[0].rpartition(".")[2]
    if part not in ("q_proj", "k_proj"):
        return None
    heads = int(made["attention.head_count" if part == "q_proj" else "attention.head_count_kv"])
    rows = torch.arange(heads * int(made["attention.key_length"]))
    return rows.reshape(heads, 2, -1).transpose(1, 2).reshape(-1)
