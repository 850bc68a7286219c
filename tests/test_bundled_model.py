"""Laws of `examples/tiny-llama`: it loads in transformers unchanged, and its recorded quality can be reproduced."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

transformers = pytest.importorskip("transformers")

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "tiny-llama"
TOKENIZER = transformers.AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
    return recorded


@pytest.fixture(scope="module")
def heldout() -> bytes:
    return (FOLDER / "heldout.txt").read_bytes()


def test_loads_unchanged_with_the_declared_shape(metrics: dict[str, Any]) -> None:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any(report.values()), report
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() == metrics["parameters"]
    assert 4_500_000 <= model.num_parameters() <= 5_500_000
    for parameter in model.parameters():
        assert bool(torch.isfinite(parameter).all())
        assert parameter.shape[-1] % 128 == 0, "groups of 32, 64 and 128 weights divide every row"
    config = model.config
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.num_attention_heads > config.num_key_value_heads
    assert config.vocab_size == len(TOKENIZER)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(config, name) == getattr(TOKENIZER, name) == getattr(model.generation_config, name)


def test_one_file_holds_every_weight_once(metrics: dict[str, Any]) -> None:
    assert [path.name for path in FOLDER.glob("*.safetensors*")] == ["model.safetensors"]
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    assert sum(sizes) == metrics["parameters"]


@given(st.text())
def test_every_text_has_tokens_that_give_it_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode(text) == [TOKENIZER.bos_token_id, *ids]


@given(st.binary())
def test_every_byte_of_utf8_is_its_own_token_at_worst(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    assert len(TOKENIZER.encode(text, add_special_tokens=False)) <= len(text.encode())


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(st.characters(codec="ascii"))), min_size=1
    )
)
def test_chat_template_turns_requests_into_comments(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    lines = [content if role == "assistant" else "# " + content.replace("\n", "\n# ") for role, content in turns]
    assert rendered == TOKENIZER.bos_token + "".join(line + "\n" for line in lines)


def test_heldout_text_is_the_measured_one(metrics: dict[str, Any], heldout: bytes) -> None:
    recorded = metrics["heldout"]
    ids = TOKENIZER.encode(heldout.decode(), add_special_tokens=False)
    assert 100_000 <= len(heldout) == recorded["bytes"] <= 200_000
    assert len(ids) == recorded["tokens"]
    assert recorded["windows"] == -(-len(ids) // (recorded["context"] - 1))
    assert recorded["bits_per_byte"] == recorded["bits"] / recorded["bytes"]
    # The rule that kept these files out of the training looks at nothing but the name.
    assert all(hashlib.sha256(name.encode()).digest()[0] < 6 for name in recorded["files"])


def test_model_is_trained(metrics: dict[str, Any]) -> None:
    """A uniform guess costs log2(512) = 9 bits per token; the model must spend at most a third of that."""
    recorded = metrics["heldout"]
    assert recorded["bits"] <= 9 * recorded["tokens"] / 3


def test_readme_states_the_recorded_figure(metrics: dict[str, Any]) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{metrics['heldout']['bits_per_byte']:.4f}" in readme


def window_bits(dtype: torch.dtype, windows: list[list[int]]) -> torch.Tensor:
    """Return -log2 p of every predicted token, float64, evaluated in `dtype` from the bf16 weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).eval()
    batch = torch.tensor(windows)
    with torch.no_grad():
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].double()
    chosen: torch.Tensor = logits.log_softmax(-1).gather(2, batch[:, 1:, None]).flatten()
    return -chosen / math.log(2)


def test_recorded_bits_are_reproduced(metrics: dict[str, Any], heldout: bytes) -> None:
    """Recompute the first windows; what float32 differs from float64 here is the scale of what machines may differ.

    The recorded sum and this one are two float32 evaluations, each within about that distance of float64; twice their
    sum is allowed, by which another order of summation has room.
    """
    recorded = metrics["heldout"]["first_windows"]
    run = metrics["heldout"]["context"] - 1
    ids = TOKENIZER.encode(heldout.decode(), add_special_tokens=False)
    windows = [[TOKENIZER.bos_token_id, *ids[i * run : (i + 1) * run]] for i in range(recorded["windows"])]
    single, double = window_bits(torch.float32, windows), window_bits(torch.float64, windows)
    assert single.numel() == recorded["tokens"]
    allowed = 4 * float((single - double).abs().sum())
    assert abs(float(single.sum()) - recorded["bits"]) <= allowed
    assert abs(float(double.sum()) - recorded["bits"]) <= allowed
    assert allowed < 1e-3 * recorded["bits"], "the tolerance says something"
