"""Model shapes that the benchmarks run, with random weights: speed depends on shapes, not on what was learned."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer of Llama's architecture. `vocabulary` rows in the embedding and in the output head."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    head_size: int = 64
    context: int = 2048

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_size,
            intermediate_size=self.inner,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context,
            rope_theta=500000.0,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )

    def outline(self, folder: Path, shards: int = 1) -> Path:
        """Write a checkpoint folder whose weights are holes in files: right in names and shapes, and zero."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config().save_pretrained(folder)
        with torch.device("meta"):
            tensors = list(LlamaForCausalLM(self.config()).state_dict().items())
        weight_map: dict[str, str] = {}
        for number in range(shards):
            file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = tensors[number * len(tensors) // shards : (number + 1) * len(tensors) // shards]
            _outline(folder / file, part)
            weight_map |= {name: file for name, _ in part}
        if shards > 1:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    def save(self, folder: Path, seed: int = 0) -> Path:
        """Write a checkpoint folder with random bf16 weights, unless it is there already."""
        if not (folder / "model.safetensors").exists():
            torch.manual_seed(seed)
            with torch.device("cpu"):
                model = LlamaForCausalLM(self.config()).to(torch.bfloat16)
            model.save_pretrained(folder, max_shard_size="20GB")
        return folder


def _outline(path: Path, tensors: list[tuple[str, torch.Tensor]]) -> None:
    header, at = {}, 0
    for name, tensor in tensors:
        end = at + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


SHAPES = {
    # A guard model of 1B class after pruning: 20 verdict tokens in the head.
    "guard": Shape(hidden=2048, layers=12, heads=32, kv_heads=8, inner=6400, vocabulary=20),
    "llama-3.1-8b": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, inner=14336, vocabulary=128256, head_size=128),
    "llama-3.2-1b": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, inner=8192, vocabulary=128256),
}
