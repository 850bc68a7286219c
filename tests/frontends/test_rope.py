"""Rotary frequencies that depend on the length are fixed for a stated one, or the model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from planish.frontends import import_checkpoint
from planish.ir import Interpreter, UnsupportedError

SIZES = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
        "original_max_position_embeddings": 8,
        "factor": 4.0,
    },
}


def save(kind: str, folder: Path) -> Any:
    longest = 8 if kind == "dynamic" else 32
    config = transformers.LlamaConfig(**SIZES, max_position_embeddings=longest, rope_parameters=KINDS[kind])
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_refused_without_a_length(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    with pytest.raises(
        UnsupportedError, match=rf"model\.rotary_emb has rotary frequencies of type '{kind}'.*state rope_length"
    ):
        import_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [pytest.param(5, marks=pytest.mark.full), 8])
def test_fixed_for_a_length(kind: str, length: int, tmp_path: Path) -> None:
    model = save(kind, tmp_path)
    ids = torch.randint(0, 31, (2, length), generator=torch.Generator().manual_seed(1))
    module = import_checkpoint(tmp_path, rope_length=length)
    with torch.no_grad():
        want = model(input_ids=ids).logits
    got = Interpreter(module).run("forward", [ids, torch.ones_like(ids, dtype=torch.bool)])[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_a_length_beyond_the_first_one(tmp_path: Path) -> None:
    """LongRoPE beyond its original length: other frequencies than below, those of transformers."""
    model = save("longrope", tmp_path)
    ids = torch.randint(0, 31, (2, 13), generator=torch.Generator().manual_seed(1))
    inputs = [ids, torch.ones_like(ids, dtype=torch.bool)]
    with torch.no_grad():
        want = model(input_ids=ids).logits
    got = Interpreter(import_checkpoint(tmp_path, rope_length=13)).run("forward", inputs)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    other = Interpreter(import_checkpoint(tmp_path, rope_length=8)).run("forward", inputs)[0]
    assert not torch.allclose(other, want, rtol=1e-4, atol=1e-4)
