"""GGUF files hold every weight bit for bit, and llama.cpp computes with them what the model computes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import planish
from planish.exporting import export
from planish.exporting.gguf_architectures import architecture, paired_rows, settings
from planish.exporting.gguf_blocks import blocks
from planish.exporting.gguf_tokenizer import SPLITTINGS, read_vocabulary
from planish.ir import (
    Dense,
    Encoding,
    GroupedInt,
    InMemory,
    InputError,
    Interpreter,
    Levels,
    MxFp4,
    NvFp4,
    Param,
    TensorType,
)
from planish.model import Model
from planish.passes.pass_base import Context
from planish.passes.quantize_activations import QuantizeActivations
from planish.testing.architectures import random_model

gguf = pytest.importorskip("gguf")

BUNDLED = Path(__file__).parents[2] / "examples" / "tiny-llama"
TYPES: dict[str, Encoding] = {
    "F32": Dense(torch.float32),
    "F16": Dense(torch.float16),
    "BF16": Dense(torch.bfloat16),
    "Q4_0": GroupedInt(4, 32),
    "Q5_0": GroupedInt(5, 64),
    "Q8_0": GroupedInt(8, 256),
    "TQ1_0": Levels("ternary", 256),
    "TQ2_0": Levels("ternary2", 256),
    "MXFP4": MxFp4(),
    "NVFP4": NvFp4(),
}


def param(encoding: Encoding, outs: int, ins: int, seed: int = 0) -> Param:
    values = torch.randn(outs, ins, generator=torch.Generator().manual_seed(seed))
    return Param("layer.weight", TensorType(torch.float32, (outs, ins)), encoding, InMemory(encoding.encode(values)))


def dequantized(name: str, made: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(made, gguf.GGMLQuantizationType[name]).copy())


@pytest.mark.parametrize("name", TYPES)
@given(seed=st.integers(0, 2**31), outs=st.integers(1, 4), wide=st.integers(1, 2))
def test_types(name: str, seed: int, outs: int, wide: int) -> None:
    """The package decodes what is written to the very numbers that the encoding holds; the scale of a whole NVFP4 tensor is
    a tensor of its own."""
    made = param(TYPES[name], outs, 256 * wide, seed)
    found = blocks("layer.weight", made, None)
    written = found.make()
    assert found.name == name and written.shape == (outs, 256 * wide // found.size * found.bytes)
    expected = made.value()
    if found.whole is not None:
        assert torch.equal(found.whole(), made.storage()["tensor_scale"].reshape(1))
        one = replace(made, source=InMemory({**made.storage(), "tensor_scale": torch.tensor(1.0)}))
        expected = one.value()
    assert torch.equal(dequantized(name, written.numpy()), expected)


def test_every_code_of_eight_bits() -> None:
    """-128 too, which llama.cpp's own quantiser never writes."""
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 256)
    storage = {"values": codes, "scales": torch.ones(1, 8, dtype=torch.float16)}
    made = replace(param(GroupedInt(8, 32), 1, 256), source=InMemory(storage))
    found = dequantized("Q8_0", blocks("x", made, None).make().numpy())
    assert torch.equal(found, torch.arange(-128.0, 128.0).reshape(1, 256))


def test_four_bits_are_laid_out_as_ggml_does() -> None:
    """The package's own quantiser, which takes the same scale, writes the same bytes where nothing is rounded."""
    made = param(GroupedInt(4, 32), 3, 64)
    codes = made.storage()["values"]
    codes[:, ::16] &= 0xF0  # one code of each group is 0, so that the largest magnitude of each is what sets its scale
    values = made.value()
    written = blocks("x", made, None).make()
    assert torch.equal(written, torch.from_numpy(gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q4_0)))


@pytest.mark.parametrize(
    "encoding, words",
    [
        (GroupedInt(4, 32, zero_points=True), "cannot hold 'x' as int4zg32sf16; quantise it to integers of 4, 5 or 8"),
        (GroupedInt(3, 32), "cannot hold 'x' as int3g32sf16"),
        (GroupedInt(4, 32, torch.int8), "cannot hold 'x' as int4g32si8"),
        (GroupedInt(4, 16), "cannot hold 'x' as int4g16sf16"),
        (Levels("ternary", 128), "cannot hold 'x' as ternaryg128sf16"),
        (Levels("sign", 256), "cannot hold 'x' as signg256sf16"),
    ],
    ids=str,
)
def test_encodings_that_are_refused(encoding: Encoding, words: str) -> None:
    with pytest.raises(InputError, match=words):
        blocks("x", param(encoding, 2, 256), None)


def test_scales_that_float16_does_not_hold() -> None:
    exact = replace(
        param(GroupedInt(4, 32, torch.float32), 1, 32),
        source=InMemory({"values": torch.zeros(1, 16, dtype=torch.uint8), "scales": torch.tensor([[0.25]])}),
    )
    assert torch.equal(dequantized("Q4_0", blocks("x", exact, None).make().numpy()), exact.value())
    with pytest.raises(InputError, match="as float16, which cannot hold those of 'x'"):
        blocks("x", param(GroupedInt(4, 32, torch.float32), 1, 32), None).make()
    with pytest.raises(InputError, match="NVFP4 in blocks of 64, which do not divide the 32 inputs of 'x'"):
        blocks("x", param(NvFp4(), 1, 32), None)
    negative = param(NvFp4(), 1, 64)
    storage = {**negative.storage(), "scales": torch.full((1, 4), 0x81, dtype=torch.uint8)}
    with pytest.raises(InputError, match="block scales without a sign"):
        blocks("x", replace(negative, source=InMemory(storage)), None).make()


@given(heads=st.integers(1, 3), half=st.integers(1, 4))
def test_rows_of_queries_turn_in_pairs(heads: int, half: int) -> None:
    """Neighbours in the new order are the elements that turn together: i and i + size / 2 of one head."""
    made = {"attention.head_count": heads, "attention.head_count_kv": 1, "attention.key_length": 2 * half}
    rows = paired_rows("model.layers.0.self_attn.q_proj.weight", made)
    assert rows is not None and sorted(rows.tolist()) == list(range(heads * 2 * half))
    first, second = rows.reshape(-1, 2).T
    assert bool((second - first == half).all()) and bool((first // (2 * half) == second // (2 * half)).all())
    keys = paired_rows("model.layers.0.self_attn.k_proj.bias", made)
    assert keys is not None and len(keys) == 2 * half
    assert paired_rows("model.layers.0.self_attn.v_proj.weight", made) is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "gemma2"}, "model_type 'gemma2' are not written, only those of llama, mistral"),
        ({"hidden_act": "gelu", "mlp_bias": True}, "config's hidden_act, mlp_bias of a llama"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "config's rope_type of a llama"),
        ({"model_type": "mistral", "sliding_window": 5}, "config's sliding_window of a mistral"),
        ({"model_type": "qwen3", "attention_bias": True}, "config's attention_bias of a qwen3"),
    ],
)
def test_architectures_that_are_refused(change: dict[str, Any], words: str) -> None:
    config = transformers.LlamaConfig().to_dict()
    assert architecture(config).name == "llama" and settings(config)["rope.freq_base"] == 10000.0
    with pytest.raises(InputError, match=words):
        architecture({**config, **change})


def tokenizer(folder: Path, **changes: Any) -> Path:
    made = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    model = {**made["model"], **changes.pop("model", {})}
    (folder / "tokenizer.json").write_text(json.dumps({**made, "model": model, **changes}), encoding="utf-8")
    return folder


def splitting(name: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": SPLITTINGS[name].regex}, "behavior": "Isolated", "invert": False}
    tail = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, tail]}


def test_vocabularies(tmp_path: Path) -> None:
    plain = read_vocabulary(BUNDLED, 514)
    assert plain.splitting == "gpt-2" and plain.tokens[3] == "!" and plain.tokens[-1] == "[PAD513]"
    assert plain.types[:4] == ("CONTROL", "CONTROL", "CONTROL", "NORMAL") and plain.types[-1] == "UNUSED"
    llama = tokenizer(tmp_path, pre_tokenizer=splitting("llama-bpe"), model={"ignore_merges": True})
    assert read_vocabulary(llama, 512).splitting == "llama-bpe"
    qwen = tokenizer(tmp_path, pre_tokenizer=splitting("qwen2"), normalizer={"type": "NFC"})
    assert read_vocabulary(qwen, 512).splitting == "qwen2"


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"model": {"byte_fallback": True}},
        {"model": {"ignore_merges": True}},
        {"model": {"type": "Unigram"}},
        {"model": {"end_of_word_suffix": "</w>"}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": splitting("llama-bpe")},
        {"pre_tokenizer": None},
    ],
)
def test_tokenizers_that_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not split text in a way that llama\.cpp has a name for"):
        read_vocabulary(tokenizer(tmp_path, **changes), 512)


def test_vocabularies_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a token of id 511, but the model has a vocabulary of 500"):
        read_vocabulary(BUNDLED, 500)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        read_vocabulary(tmp_path, 500)


def encoded(model: Model, encodings: Mapping[str, Encoding]) -> Model:
    given = [model.module.params[name] for name in encodings]
    made = [replace(p, encoding=(e := encodings[p.name]), source=InMemory(e.encode(p.value()))) for p in given]
    return replace(model, module=model.module.with_params(made))


@contextmanager
def llama_cpp(path: Path) -> Iterator[Any]:
    """The file in llama.cpp, which caches keys and values in float32."""
    package = pytest.importorskip("llama_cpp")
    kind = package.GGML_TYPE_F32
    model = package.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, type_k=kind, type_v=kind, n_threads=2)
    try:
        yield model
    finally:
        model.close()


def their_logits(model: Any, ids: list[int]) -> torch.Tensor:
    model.reset()
    model.eval(ids)
    return torch.from_numpy(np.array(model.scores[: len(ids)])).double()


def our_logits(model: Model, ids: list[int], promote: bool = False) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.bool)}
    return Interpreter(model.module, promote=promote).run("forward", inputs)[0][0].double()


def in_float32(model: Model) -> Model:
    """The same numbers, each held as a float32."""
    return encoded(model, {n: Dense(torch.float32) for n in model.module.params if n.endswith("weight")})


TEXT = "def fib(n):\n    return  x + 1's 123"


@pytest.mark.full
def test_the_bundled_model_in_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every type at once. With the same numbers as float32, llama.cpp's logits are within four times float32's own error;
    with the types themselves, for which it quantises activations in blocks, within four times the error of int8 rows."""
    traced = planish.trace(BUNDLED, check=False)
    names = [n for n in traced.module.params if n.endswith("proj.weight")]
    kinds = [TYPES[t] for t in ("Q4_0", "Q8_0", "TQ1_0", "Q5_0", "MXFP4", "NVFP4", "F16", "BF16", "TQ2_0")]
    small = encoded(
        traced, {**{n: kinds[i % 9] for i, n in enumerate(names)}, "model.embed_tokens.weight": GroupedInt(8, 32)}
    )
    # The checkpoint is traced once: each export would trace it again.
    monkeypatch.setattr("planish.tracing.trace", lambda *args, **options: traced)
    file = export(small, tmp_path / "small.gguf", format="gguf")
    stored = {t.name: t for t in gguf.GGUFReader(file).tensors}
    assert {t.tensor_type.name for t in stored.values()} == {*TYPES}
    weight = small.module.params["model.layers.0.self_attn.q_proj.weight"]
    query = dequantized("Q4_0", stored["blk.0.attn_q.weight"].data)
    assert torch.equal(query.reshape(8, 16, 2, 256).transpose(1, 2).reshape(256, 256), weight.value())

    exact_file = export(in_float32(small), tmp_path / "exact.gguf", format="gguf")
    with llama_cpp(exact_file) as exact, llama_cpp(file) as model:
        ids = exact.tokenize(TEXT.encode())
        assert ids == tokenizers.Tokenizer.from_file(str(BUNDLED / "tokenizer.json")).encode(TEXT).ids
        assert exact.detokenize(ids[1:]).decode() == TEXT
        assert (exact.token_bos(), exact.token_eos()) == (1, 2)
        truth, plain = our_logits(small, ids, promote=True), our_logits(small, ids)
        assert float((their_logits(exact, ids) - truth).abs().max()) <= 4 * float((plain - truth).abs().max())
        rows = replace(small, module=QuantizeActivations().apply(small.module, Context()).module)
        off = float((our_logits(rows, ids) - truth).square().mean())
        assert float((their_logits(model, ids) - truth).square().mean()) <= 4 * off


@pytest.mark.full
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_architectures_in_llama_cpp(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models, biases and heads of their own included: float32 against float64, within four times our own error."""
    folder = tmp_path / name
    biases = {"attention_bias": True} if name == "llama" else {}
    configured = random_model(name).config
    configured.update({"vocab_size": 512, **biases})
    model = transformers.AutoModelForCausalLM.from_config(configured)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.copy_(parameter + drawn if parameter.dim() == 1 else drawn)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((BUNDLED / file).read_bytes())
    traced = planish.trace(folder, check=False)
    monkeypatch.setattr("planish.tracing.trace", lambda *args, **options: traced)
    ids = [1, 318, 288, 75, 68, 10, 80]
    with llama_cpp(export(traced, tmp_path / "model.gguf", format="gguf")) as theirs:
        truth, plain = our_logits(traced, ids, promote=True), our_logits(traced, ids)
        assert float((their_logits(theirs, ids) - truth).abs().max()) <= 4 * float((plain - truth).abs().max())


@pytest.mark.full
def test_files_that_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    traced = planish.trace(checkpoint, check=False)
    with pytest.raises(InputError, match="does not split text"):
        export(traced, tmp_path / "x.gguf", format="gguf")
    assert not list(tmp_path.iterdir())
