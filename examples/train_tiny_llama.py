"""Train the bundled model, `examples/tiny-llama`, on the sources of the Python standard library.

    python examples/train_tiny_llama.py            # about 40 minutes on two cores; continues where it was stopped
    python examples/train_tiny_llama.py --export   # write the model of the newest checkpoint and stop

The model, its tokenizer, the held-out text and `metrics.json` are written to `--out`. The run is seeded; two runs on
different machines still differ in the last bits of every sum, hence in the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import torch
from tiny_llama_training.corpus import heldout_text, standard_library
from tiny_llama_training.loop import CheckpointError, Recipe, Trainer
from tiny_llama_training.measure import measure, split_windows
from tiny_llama_training.tokenizer import VOCABULARY, train_tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
FIRST_WINDOWS = 8  # recorded apart, so that a quick test can reproduce a figure


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model: widths are multiples of 128, so that weight groups of 32, 64 and 128 divide them."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=recipe.long_context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # What is added to the residual stream starts smaller, so that its variance does not grow with depth.
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> LlamaForCausalLM:
    """Write the model as bf16 with its tokenizer, and return what was written, read back in float32."""
    out.mkdir(parents=True, exist_ok=True)
    rounded = LlamaForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    rounded.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the bundled model on the Python standard library's sources.")
    parser.add_argument("--out", type=Path, default=HERE / "tiny-llama", help="folder the model is written to")
    parser.add_argument(
        "--work", type=Path, default=HERE.parent / "out" / "tiny-llama", help="folder of the checkpoint"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="train without torch.compile (no C++ compiler needed)")
    parser.add_argument("--export", action="store_true", help="write the model of the newest checkpoint and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    recipe = Recipe()
    corpus = standard_library()
    tokenizer = train_tokenizer((source.text for source in corpus.train), recipe.long_context)
    encode = tokenizer.backend_tokenizer.encode
    stream = torch.tensor(
        [
            token
            for source in corpus.train
            for token in [*encode(source.text, add_special_tokens=False).ids, tokenizer.eos_token_id]
        ]
    )
    heldout, heldout_names = heldout_text(corpus)
    corpus_bytes = sum(len(source.text.encode()) for source in corpus.train)
    print(
        f"{len(corpus.train)} files, {corpus_bytes} bytes, {len(stream)} tokens; held out: {heldout_names}", flush=True
    )

    model = build_model(recipe, tokenizer)
    checkpoint = arguments.work / "checkpoint.safetensors"
    if arguments.export and not checkpoint.exists():
        print(f"error: {checkpoint} does not exist; train first", file=sys.stderr)
        return 1
    try:
        trainer = Trainer(
            model, stream, recipe, {"text": corpus.digest(), "merges": tokenizer.backend_tokenizer.to_str()}, checkpoint
        )
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{model.num_parameters()} parameters, starting at step {trainer.step}", flush=True)
    if not arguments.export:
        trainer.run(tokenizer.bos_token_id, compiled=not arguments.eager)

    written = export(model, tokenizer, arguments.out)
    write_text(arguments.out / "heldout.txt", heldout)
    ids = encode(heldout, add_special_tokens=False).ids
    heldout_bytes = len(heldout.encode())
    windows = split_windows(ids, recipe.context, tokenizer.bos_token_id)
    tally = measure(written, windows)
    first = measure(written, windows[:FIRST_WINDOWS])
    long = measure(written, split_windows(ids, recipe.long_context, tokenizer.bos_token_id))
    unrounded = measure(model, windows)
    metrics = {
        "parameters": model.num_parameters(),
        "corpus": {
            "python": platform.python_version(),
            "files": len(corpus.train),
            "bytes": corpus_bytes,
            "tokens": len(stream),
        },
        "training": {
            "steps": trainer.step,
            "tokens": trainer.step * recipe.tokens_per_step,
            "elapsed_minutes": round(trainer.seconds / 60, 1),
            "threads": arguments.threads,
            "torch": torch.__version__,
        },
        "heldout": {
            "files": heldout_names,
            "bytes": heldout_bytes,
            "tokens": tally.tokens,
            "context": recipe.context,
            "windows": tally.windows,
            "bits": tally.bits,
            "bits_per_byte": tally.bits / heldout_bytes,
            "first_windows": {"windows": first.windows, "tokens": first.tokens, "bits": first.bits},
            "bits_per_byte_at_context_1024": long.bits / heldout_bytes,
            "bits_per_byte_before_rounding_to_bf16": unrounded.bits / heldout_bytes,
        },
    }
    write_text(arguments.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(f"{tally.bits / heldout_bytes:.4f} bits per byte on {heldout_bytes} held-out bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
