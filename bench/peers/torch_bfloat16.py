"""torch in bfloat16 as a contestant: transformers' own model, on the checkpoint that ours was compiled from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def prompt(checkpoint: Path, ids: list[int], threads: int) -> Callable[[int], None]:
    """A whole prompt, from ids to the logits of its last token, its caches filled."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    given = torch.tensor([ids])

    def read(call: int) -> None:
        with torch.inference_mode():
            model(given, use_cache=True, logits_to_keep=1)

    return read
