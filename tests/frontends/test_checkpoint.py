"""Checkpoint folders of every architecture compute what transformers computes, with any padding and any sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from planish.frontends import import_checkpoint
from planish.ir import Interpreter, Module
from planish.testing.architectures import CAUSAL, ENCODERS, random_model

QUICK = ("llama", "gpt2", "gemma2", "bert")
TIED = {"tie_word_embeddings": True}
_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
_GATED = {**_SIZES, "intermediate_size": 80, "num_key_value_heads": 2, "pad_token_id": 0}

# Beside the architectures that everything is tested on: variants and neighbours that take other paths through here.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-tied-biased": ("LlamaForCausalLM", "LlamaConfig", {**_GATED, **TIED, "attention_bias": True, "mlp_bias": True}),
    "qwen2-some-windows": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_GATED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_GATED, "head_dim": 16, "sliding_window": 4}),
    "opt-projected": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_SIZES, "ffn_dim": 80, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    ),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**_SIZES, "multi_query": True, "alibi": False}),
    "falcon-alibi": ("FalconForCausalLM", "FalconConfig", {**_SIZES, "multi_query": False, "alibi": True}),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 6, "rotary_dim": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_GATED, "head_dim": 16, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "bert-masked": ("BertForMaskedLM", "BertConfig", {**_SIZES, "intermediate_size": 80}),
    "bert-classes": ("BertForSequenceClassification", "BertConfig", {**_SIZES, "intermediate_size": 80, "num_labels": 5}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {**_SIZES, "intermediate_size": 80}),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 97, "dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 6},
    ),
}  # fmt: skip


def other_model(name: str) -> transformers.PreTrainedModel:
    kind, config, options = OTHERS[name]
    made = getattr(transformers, config)(**options)
    # The two that transformers prefers cannot run in float64 (experts) or give NaN for a query that sees no key.
    made._attn_implementation, made._experts_implementation = "eager", "eager"
    return getattr(transformers, kind)(made).eval()


def model_of(name: str) -> transformers.PreTrainedModel:
    """The architecture with random weights, gains and biases included."""
    model = other_model(name) if name in OTHERS else random_model(name)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data.copy_(parameter + drawn if parameter.dim() == 1 else drawn)
    model.set_attn_implementation("eager")
    return model


def batch(rows: int = 3, length: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask: a whole row, one padded on the left, one on the right."""
    ids = torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[1:2, :4] = False
    mask[2:3, length - 3 :] = False
    return ids, mask


def reference(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Transformers' result. A decoder reads each row alone, without its padding, which so has no say in it."""
    with torch.no_grad():
        if not model.can_generate():
            result = model(input_ids=ids, attention_mask=mask.long())
            return result.logits if "logits" in result else result.last_hidden_state
        rows = [model(input_ids=ids[b : b + 1, mask[b]]).logits[0] for b in range(ids.shape[0])]
    logits = torch.zeros(*ids.shape, rows[0].shape[-1], dtype=rows[0].dtype)
    for b, row in enumerate(rows):
        logits[b, mask[b]] = row
    return logits


def run(module: Module, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    wanted = [v.name for v in module.functions["forward"].inputs]
    return Interpreter(module, **options).run("forward", {name: inputs[name] for name in wanted})[0]


def _named(names: list[str]) -> list[Any]:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in names]


@pytest.mark.parametrize("name", _named([*CAUSAL, *ENCODERS, *OTHERS]))
def test_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    """Float32 and float64 differ from transformers' float64 by at most 4 times what transformers' own float32 does."""
    model = model_of(name)
    model.save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path)
    ids, mask = batch()
    single, double = reference(model, ids, mask), reference(model.double(), ids, mask)

    def apart(result: torch.Tensor) -> float:
        difference = (result.double() - double).abs()
        return float((difference[mask] if difference.dim() == 3 else difference).max())

    bound = 4 * apart(single)
    assert 0 < bound < 1e-3
    assert apart(run(module, ids, mask)) <= bound
    assert apart(run(module, ids, mask, promote=True)) <= bound


@pytest.mark.full
@pytest.mark.parametrize("name", ["llama", "bloom", "bert"])
def test_any_batch_and_length(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path)
    ids, mask = batch()
    whole = run(module, ids, mask)
    for row in range(3):
        # An encoder counts positions from the front, padding included: only a whole row starts where its part does.
        for start, end in ((0, 11), (4, 8), (5, 6)) if name != "bert" else ((0, 11), (0, 1)):
            part_ids, part_mask = ids[row : row + 1, start:end], mask[row : row + 1, start:end]
            if not part_mask.any():
                continue
            part, want = run(module, part_ids, part_mask), reference(model, part_ids, part_mask)
            torch.testing.assert_close(part[part_mask], want[part_mask], rtol=1e-4, atol=1e-4)
            if end == 11:
                torch.testing.assert_close(part[part_mask], whole[row : row + 1][part_mask], rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_what_is_hidden_by_padding_has_no_say(tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path)
    ids, mask = batch()
    other = torch.where(mask, ids, 7)
    assert torch.equal(run(module, ids, mask)[mask], run(module, other, mask)[mask])


def test_inputs_outputs_and_metadata(tmp_path: Path) -> None:
    model = model_of("llama")
    model.config.eos_token_id = 2
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path)
    function = module.functions["forward"]
    assert [f"{v.name}: {v.type}" for v in function.inputs] == ["input_ids: i64[B, S]", "attention_mask: bool[B, S]"]
    assert function.output_names == ("logits",) and str(function.outputs[0].type) == "f32[B, S, 97]"
    assert dict(module.metadata) == {
        "kind": "causal_lm",
        "architecture": "LlamaForCausalLM",
        "vocab_size": 97,
        "context_length": 256,
        "bos_token_id": 1,
        "eos_token_ids": (2, 5),
        "pad_token_id": 0,
        "dim_ranges": (("S", 1, 256),),
    }


def test_encoders(tmp_path: Path) -> None:
    model_of("bert").save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path)
    function = module.functions["forward"]
    assert [v.name for v in function.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert function.output_names == ("last_hidden_state", "pooler_output")
    assert module.metadata["kind"] == "encoder"


@pytest.mark.full
def test_other_dtypes(tmp_path: Path) -> None:
    model = model_of("qwen2")
    model.save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert str(module.functions["forward"].outputs[0].type) == "bf16[B, S, 97]"
    ids, mask = batch()
    assert run(module, ids, mask).dtype == torch.bfloat16


@pytest.mark.full
def test_one_attention_operation_a_layer_each_with_its_mask(tmp_path: Path) -> None:
    model_of("gemma2").save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path)
    nodes = [n for n in module.functions["forward"].nodes if n.op.name == "attention"]
    assert len(nodes) == 2
    assert all(n.op.attributes()["softcap"] == 50.0 and n.inputs[8] is not None for n in nodes)
    assert all("modeling_gemma2.py:" in n.source and "model.layers" in n.source for n in nodes)
