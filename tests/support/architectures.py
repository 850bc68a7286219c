"""Tiny random models of the architectures that the frontends must read, saved as checkpoint folders."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

import planish
from planish.ir import Module

VOCABULARY = 97
LONGEST = 256
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
    **_TOKENS,
}
_GATED = {**_SIZES, "intermediate_size": 96, "num_key_value_heads": 2}

# With tied random embeddings these two write one token for ever, and would show nothing.
_UNTIED = {"tie_word_embeddings": False}

# The window of the sliding ones is shorter than every test's sequence, so that it shows.
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GATED),
    "mistral": ("MistralConfig", {**_GATED, "sliding_window": 5}),
    "qwen2": ("Qwen2Config", _GATED),
    "qwen3": ("Qwen3Config", {**_GATED, "head_dim": 16}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LONGEST, **_TOKENS}),
    "opt": ("OPTConfig", {**_SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, **_UNTIED, **_TOKENS}),
    "gpt_neox": ("GPTNeoXConfig", {**_SIZES, "intermediate_size": 96, "rotary_pct": 0.25}),
    "gemma2": ("Gemma2Config", {**_GATED, **_UNTIED, "head_dim": 16, "sliding_window": 5}),
    # Multi-head latent attention; layers with experts are left out.
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_GATED, "num_key_value_heads": 4, "first_k_dense_replace": 2, "q_lora_rank": 24, "kv_lora_rank": 20,
            "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "head_dim": 8,
        },
    ),
}  # fmt: skip
# Layers with experts, of which each token is given two.
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_GATED, "head_dim": 16, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2},
    ),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {"bert": ("BertConfig", {**_SIZES, "intermediate_size": 96})}
_BOTH_STACKS = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96, "decoder_ffn_dim": 80, "max_position_embeddings": LONGEST, "decoder_start_token_id": 2, **_TOKENS,
    **_UNTIED,
}  # fmt: skip
# Learned positions in one, sinusoids in the other; one normalises after its sublayers, the other before.
SEQUENCE_TO_SEQUENCE: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartConfig", _BOTH_STACKS),
    "pegasus": ("PegasusConfig", {**_BOTH_STACKS, "scale_embedding": True}),
}


def factory_of(name: str) -> Any:
    """Transformers' automatic class that builds and loads the architecture."""
    if name in ENCODERS:
        return transformers.AutoModel
    return transformers.AutoModelForSeq2SeqLM if name in SEQUENCE_TO_SEQUENCE else transformers.AutoModelForCausalLM


def in_both_precisions(name: str, folder: Path) -> tuple[Any, Any]:
    """Transformers' model from a saved folder, in float32 and in float64, with its own plain attention."""
    single, double = (
        factory_of(name).from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        for dtype in (torch.float32, torch.float64)
    )
    return single, double


def random_model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """The architecture with weights wide enough that its logits differ clearly between tokens."""
    kind, options = {**CAUSAL, **MIXTURES, **ENCODERS, **SEQUENCE_TO_SEQUENCE}[name]
    config = getattr(transformers, kind)(**options)
    torch.manual_seed(seed)
    factory = factory_of(name)
    model = factory.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def save_random_model(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the architecture's checkpoint folder."""
    random_model(name, seed).save_pretrained(folder)
    return folder


@cache
def _folder() -> TemporaryDirectory[str]:
    """For as long as the process runs: modules read their weights from there."""
    return TemporaryDirectory(prefix="architectures-")


@cache
def traced_architecture(name: str) -> Module:
    """The architecture as it is traced from its checkpoint: one for all tests of a process, as a module never changes."""
    return planish.trace(save_random_model(name, Path(_folder().name) / name), check=False).module
