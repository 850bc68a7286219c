"""llama.cpp as a contestant: the same shape with random weights as a GGUF file, timed through its Python bindings."""

from __future__ import annotations

from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from peers import ggml
from shapes import Shape


def write_gguf(shape: Shape, path: Path, kind: gguf.GGMLQuantizationType, seed: int = 0) -> Path:
    """Random weights with every matrix in one quantisation type, unless the file is there already."""
    if path.exists():
        return path
    random = np.random.default_rng(seed)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * 0.02
        writer.add_tensor(name, ggml.quantize(values, kind), raw_dtype=kind)

    def gain(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.hidden, dtype=np.float32))

    attended, shared = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    matrix("token_embd.weight", shape.vocabulary, shape.hidden)
    matrix("output.weight", shape.vocabulary, shape.hidden)
    gain("output_norm.weight")
    for layer in range(shape.layers):
        gain(f"blk.{layer}.attn_norm.weight")
        gain(f"blk.{layer}.ffn_norm.weight")
        for name, rows, columns in (
            ("attn_q", attended, shape.hidden),
            ("attn_k", shared, shape.hidden),
            ("attn_v", shared, shape.hidden),
            ("attn_output", shape.hidden, attended),
            ("ffn_gate", shape.inner, shape.hidden),
            ("ffn_up", shape.inner, shape.hidden),
            ("ffn_down", shape.hidden, shape.inner),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


class LlamaCpp:
    """A loaded GGUF model. Tokens are ids; nothing is sampled, so that only the model is timed."""

    def __init__(self, path: Path, *, threads: int, context: int) -> None:
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 512, 512
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._model or not self._context:
            raise RuntimeError(f"llama.cpp does not load {path}")

    def reset(self) -> None:
        """Forget every token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def keep(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, tokens, -1)

    def read(self, ids: list[int]) -> None:
        """Process tokens after those read so far; logits of the last one are computed."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        code = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if code != 0:
            raise RuntimeError(f"llama.cpp's decode returned {code}")
        llama_cpp.llama_synchronize(self._context)
