"""One tiny random Llama with a character tokenizer, compiled once for all tests that need an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, processors

import planish
from planish.testing.architectures import VOCABULARY, random_model

SPECIAL = ("<pad>", "<s>", "</s>")
# Each printable character that the vocabulary has room for is a token of its own.
CHARACTERS = "".join(chr(32 + n) for n in range(VOCABULARY - len(SPECIAL)))
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token a character and a chat template."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.add_special_tokens(list(SPECIAL))
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="session")
def reference() -> transformers.PreTrainedModel:
    return random_model("llama")


@pytest.fixture(scope="session")
def checkpoint(reference: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    reference.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled checkpoint's folder; only tests of the full tier ask for it."""
    model = planish.trace(checkpoint, check=False)
    return planish.build(model, check=False).save(tmp_path_factory.mktemp("compiled") / "artifact")


@pytest.fixture(scope="session")
def program(artifact: Path) -> Any:
    return planish.load(artifact)


@pytest.fixture(scope="session")
def ids() -> list[list[int]]:
    """Three prompts of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (9, 1, 5)]
