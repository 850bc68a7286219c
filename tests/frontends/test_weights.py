"""Weights are found under their names wherever they are stored, read lazily, and refused when they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from planish.frontends import import_checkpoint
from planish.ir import Computed, Dense, InFile, InputError, UnsupportedError
from planish.testing.architectures import random_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    random_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_weights_stay_in_their_file(folder: Path) -> None:
    module = import_checkpoint(folder)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() <= module.params.keys()
    for name, tensor in stored.items():
        param = module.params[name]
        assert isinstance(param.source, InFile) and torch.equal(param.value(), tensor)
    assert set(module.params) - set(stored) == {"model.rotary_emb.inv_freq"}


def test_stored_dtype_is_the_encoding(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({k: v.to(torch.bfloat16) for k, v in tensors.items()}))
    module = import_checkpoint(folder)
    param = module.params["model.layers.0.mlp.up_proj.weight"]
    assert param.type.dtype == torch.float32 and param.encoding == Dense(torch.bfloat16)
    assert param.value().dtype == torch.float32
    assert module.params["model.rotary_emb.inv_freq"].encoding == Dense(torch.float32)


@pytest.mark.full
def test_shards(tmp_path: Path) -> None:
    model = random_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    module = import_checkpoint(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(module.params[name].value(), tensor)


def test_tied_weights_are_one_parameter(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    module = import_checkpoint(tmp_path)
    assert "model.embed_tokens.weight" in module.params and "lm_head.weight" not in module.params
    uses = [r.name for r in module.functions["forward"].references()]
    assert uses.count("model.embed_tokens.weight") == 2


@pytest.mark.full
def test_weights_of_a_model_without_its_head(tmp_path: Path) -> None:
    """A base model's checkpoint, read by a class that has it inside, and under the names of older checkpoints."""
    model = random_model("bert")
    model.save_pretrained(tmp_path)
    renamed = {
        f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma"): v
        for k, v in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    module = import_checkpoint(tmp_path)
    expected = model.state_dict()["embeddings.LayerNorm.weight"]
    assert torch.equal(module.params["embeddings.LayerNorm.weight"].value(), expected)


@pytest.mark.full
def test_computed_weights(tmp_path: Path) -> None:
    """Mixtral stores one tensor for each expert; the model holds them stacked, gate and up joined."""
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
    config = transformers.MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=3)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path)
    assert any("experts.2" in key for key in load_file(tmp_path / "model.safetensors"))
    module = import_checkpoint(tmp_path)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    param = module.params[name]
    assert isinstance(param.source, Computed) and param.encoding == Dense(torch.float32)
    assert torch.equal(param.value(), model.state_dict()[name])


UP = "model.layers.1.mlp.up_proj.weight"


def test_missing_weights(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.__delitem__(UP))
    with pytest.raises(InputError, match=rf"lacks the weights {UP} of LlamaForCausalLM"):
        import_checkpoint(folder)


def test_left_over_weights(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"model.layers.7.extra": torch.ones(2)}))
    with pytest.raises(
        InputError, match=r"LlamaForCausalLM has no place for \(model\.layers\.7\.extra\); pass ignore_un"
    ):
        import_checkpoint(folder)
    assert UP in import_checkpoint(folder, ignore_unexpected=True).params


@pytest.mark.full
def test_buffers_of_older_versions_are_harmless(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert UP in import_checkpoint(folder).params


def test_wrong_shape(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({UP: tensors[UP][:-1].contiguous()}))
    with pytest.raises(
        InputError, match=rf"'{UP}' has shape \[95, 64\] in model\.safetensors, but the config asks for \[96, 64\]"
    ):
        import_checkpoint(folder)


def test_unsupported_dtype(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({UP: tensors[UP].to(torch.float8_e4m3fn)}))
    with pytest.raises(
        InputError, match=rf"'{UP}' is stored as float8_e4m3fn.* without the scales of a quantised weight"
    ):
        import_checkpoint(folder)
    edit(folder, lambda tensors: tensors.update({UP: tensors[UP].to(torch.float8_e5m2)}))
    with pytest.raises(InputError, match=rf"'{UP}' in .* has dtype F8_E5M2, which is not supported"):
        import_checkpoint(folder)


def test_integers_for_a_float_weight(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({UP: tensors[UP].to(torch.int32)}))
    with pytest.raises(
        InputError, match=rf"'{UP}' is stored as int32.* in model\.safetensors without .* the model computes with f32"
    ):
        import_checkpoint(folder)


@pytest.mark.full
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    edit(folder, lambda tensors: tensors[UP].__setitem__((3, 4), value))
    with pytest.raises(InputError, match=rf"the weights {UP} hold NaN or infinity"):
        import_checkpoint(folder)
    assert UP in import_checkpoint(folder, check_finite=False).params


def test_truncated_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or not a safetensors file"):
        import_checkpoint(folder)


def test_missing_shard(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(InputError, match=f"lacks {second.name}, which model.safetensors.index.json lists"):
        import_checkpoint(tmp_path)
    second.write_bytes(sorted(tmp_path.glob("*.safetensors"))[0].read_bytes())
    with pytest.raises(
        InputError, match=rf"{second.name} does not hold .*, which model\.safetensors\.index\.json says"
    ):
        import_checkpoint(tmp_path)
    second.write_bytes(content)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="not a valid index of shards"):
        import_checkpoint(tmp_path)


def test_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds its weights as pytorch_model\.bin, which could run code when loaded"):
        import_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        import_checkpoint(folder)


def test_folders_and_configs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        import_checkpoint(tmp_path / "absent")
    configure(folder, architectures=["NoSuchModel"])
    with pytest.raises(InputError, match="names the architecture 'NoSuchModel', which transformers does not have"):
        import_checkpoint(folder)
    configure(folder, architectures=["PreTrainedTokenizerFast"])
    with pytest.raises(InputError, match="'PreTrainedTokenizerFast', which is not a model"):
        import_checkpoint(folder)
    configure(folder, architectures=["LlamaForCausalLM"], num_attention_heads=5)
    with pytest.raises(InputError, match=r"accepts: .*not a multiple of the number of attention heads"):
        import_checkpoint(folder)
    configure(folder, model_type="no_such_type")
    with pytest.raises(InputError, match="is not a config that transformers accepts"):
        import_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not a config that transformers accepts"):
        import_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        import_checkpoint(folder)


def test_models_of_other_kinds(folder: Path) -> None:
    transformers.T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, architectures=["T5Model"]
    ).save_pretrained(folder)
    with pytest.raises(UnsupportedError, match="T5Model has an encoder and a decoder but no head over tokens"):
        import_checkpoint(folder)
    transformers.ViTConfig(architectures=["ViTForImageClassification"]).save_pretrained(folder)
    with pytest.raises(UnsupportedError, match="ViTForImageClassification reads pixel_values, not tokens"):
        import_checkpoint(folder)
