"""What the package compressed-tensors wrote is read as the package itself reads it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from planish.frontends import import_checkpoint
from planish.frontends.quantized.compressed_tensors import CompressedTensors
from planish.ir import Dense, Float8, GroupedInt, InMemory, InputError, Interpreter, NvFp4, Param, UnsupportedError
from planish.testing.architectures import random_model
from planish.testing.quantized import fp8, param_of, requantize

package = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")

SEEDS = st.integers(0, 2**31)
SCALES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
GROUPS: dict[str, Any] = {
    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
}
SETTINGS = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": GROUPS,
    "ignore": ["lm_head"],
}
UP = "model.layers.0.mlp.up_proj.weight"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scheme(**weights: Any) -> Any:
    return quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**weights))


def compressor(format: str) -> Any:
    return package.BaseCompressor.get_value_from_registry(format)


def held(tensors: Mapping[str, torch.Tensor], bits: int, outs: int, ins: int) -> Param:
    """The parameter, its storage read while its file is there."""
    with tempfile.TemporaryDirectory() as folder:
        param = param_of(Path(folder), tensors, CompressedTensors(bits=frozenset({bits})), outs, ins)
        return Param(param.name, param.type, param.encoding, InMemory(param.storage()))


@st.composite
def integer_weights(draw: st.DrawFn) -> tuple[Any, dict[str, torch.Tensor]]:
    """A scheme of integers with a weight, scales and perhaps zero points for it."""
    bits, dtype, symmetric = draw(st.integers(1, 8)), draw(SCALES), draw(st.booleans())
    # The package cannot unpack zero points that fill less than a word.
    outs, groups, group = draw(st.integers(9, 17)), draw(st.integers(1, 3)), draw(st.sampled_from([8, 16, 24, 32]))
    whole, generator = draw(st.booleans()), seeded(draw(SEEDS))
    columns = 1 if whole else groups
    state = {
        "weight": torch.randn(outs, groups * group, generator=generator).to(dtype),
        "weight_scale": ((torch.rand(outs, columns, generator=generator) + 0.1) / (1 << bits)).to(dtype),
    }
    if not symmetric:
        low, high = -(1 << bits - 1), 1 << bits - 1
        state["weight_zero_point"] = torch.randint(low, high, (outs, columns), generator=generator).to(torch.int8)
    sizes = {"strategy": "channel"} if whole else {"strategy": "group", "group_size": group}
    return scheme(num_bits=bits, type="int", symmetric=symmetric, **sizes), state


@given(integer_weights())
def test_packed_integers(drawn: tuple[Any, dict[str, torch.Tensor]]) -> None:
    """The package computes in the dtype of the scales: our product, which float32 holds exactly, rounded once to it."""
    made, state = drawn
    pack = compressor("pack-quantized")
    stored = pack.compress(state, made)
    (outs, ins), bits = state["weight"].shape, made.weights.num_bits
    param = held(stored, bits, outs, ins)
    group = made.weights.group_size or ins
    assert param.encoding == GroupedInt(bits, group, state["weight_scale"].dtype, not made.weights.symmetric)
    theirs = pack.decompress(stored, made)["weight"]
    assert torch.equal(param.value().to(theirs.dtype), theirs)
    assert torch.equal(param.storage()["scales"], state["weight_scale"])


@given(integer_weights())
def test_plain_integers(drawn: tuple[Any, dict[str, torch.Tensor]]) -> None:
    made, state = drawn
    plain = compressor("int-quantized")
    stored = plain.compress(state, made)
    param = held(stored, made.weights.num_bits, *state["weight"].shape)
    assert isinstance(param.encoding, GroupedInt) and param.encoding.bits == 8
    theirs = plain.decompress(stored, made)["weight"]
    assert torch.equal(param.value().to(theirs.dtype), theirs)


@given(
    seed=SEEDS,
    outs=st.integers(2, 9),
    ins=st.integers(1, 20),
    dtype=SCALES,
    strategy=st.sampled_from(["channel", "tensor"]),
)
def test_fp8(seed: int, outs: int, ins: int, dtype: torch.dtype, strategy: str) -> None:
    made, generator = scheme(num_bits=8, type="float", strategy=strategy), seeded(seed)
    state = {
        "weight": torch.randn(outs, ins, generator=generator).to(dtype),
        "weight_scale": torch.rand((outs, 1) if strategy == "channel" else (1,), generator=generator).to(dtype) + 0.01,
    }
    floats = compressor("float-quantized")
    stored = floats.compress(state, made)
    param = held(stored, 8, outs, ins)
    assert param.encoding == Float8("row" if strategy == "channel" else "tensor")
    theirs = floats.decompress(stored, made)["weight"]
    assert torch.equal(param.value().to(theirs.dtype), theirs)


@given(seed=SEEDS, outs=st.integers(1, 9), blocks=st.integers(1, 4))
def test_nvfp4(seed: int, outs: int, blocks: int) -> None:
    """The package divides block scales by the tensor's in float32 and rounds the product to bfloat16: with ours, which
    multiplies by a rounded reciprocal, the quotients differ by less than 2^-22 of themselves, the results by that and a
    rounding to bfloat16, 2^-8."""
    made, generator = scheme(num_bits=4, type="float", strategy="tensor_group", group_size=16), seeded(seed)
    weight = torch.randn(outs, 16 * blocks, generator=generator)
    whole = (torch.rand(1, generator=generator) + 0.5) * 448 * 6 / weight.abs().max()
    scales = (weight.unflatten(1, (-1, 16)).abs().amax(-1) / 6 * whole).to(torch.float8_e4m3fn)
    floats = compressor("nvfp4-pack-quantized")
    state = {"weight": weight, "weight_scale": scales.float(), "weight_global_scale": whole}
    stored = floats.compress(state, made)
    param = held(stored, 8, outs, 16 * blocks)
    assert param.encoding == NvFp4()
    storage = param.storage()
    assert torch.equal(storage["values"], stored["weight_packed"])
    assert torch.equal(storage["scales"], stored["weight_scale"].view(torch.uint8))
    ours, theirs = param.value().double(), floats.decompress(stored, made)["weight"].double()
    assert bool(((ours - theirs).abs() <= ours.abs() * (2.0**-8 + 2.0**-22)).all())
    # Where the reciprocal is exact, so are the values.
    power = {**stored, "weight_global_scale": torch.tensor([2.0**9])}
    theirs = floats.decompress(power, made)["weight"]
    assert torch.equal(held(power, 8, outs, 16 * blocks).value().to(torch.bfloat16), theirs)


def checkpoint(folder: Path, settings: Mapping[str, Any] = SETTINGS) -> dict[str, torch.Tensor]:
    random_model("llama").save_pretrained(folder)
    made, generator = scheme(num_bits=4, type="int", strategy="group", group_size=32), seeded(5)

    def make(outs: int, ins: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        scales = (torch.rand(outs, ins // 32, generator=generator) / 100).bfloat16()
        state = {"weight": torch.randn(outs, ins, generator=generator) * 0.05, "weight_scale": scales}
        stored = compressor("pack-quantized").compress(state, made)
        return stored, compressor("pack-quantized").decompress({**stored, "weight_scale": scales.float()}, made)[
            "weight"
        ]

    return requantize(folder, settings, make)


@pytest.mark.full
def test_a_model_computes_what_its_dense_copy_does(tmp_path: Path) -> None:
    groups = {"group_0": {**GROUPS["group_0"], "input_activations": {"num_bits": 8, "dynamic": True}}}
    (tmp_path / "quantised").mkdir()
    dense = checkpoint(tmp_path / "quantised", {**SETTINGS, "config_groups": groups})
    with pytest.warns(UserWarning, match="also quantises activations, which here stay as they are"):
        module = import_checkpoint(tmp_path / "quantised")
    assert module.params[UP].encoding == GroupedInt(4, 32, torch.bfloat16)
    assert module.params["lm_head.weight"].encoding == Dense(torch.float32)
    assert all(torch.equal(module.params[name].value(), value) for name, value in dense.items())
    random_model("llama").save_pretrained(tmp_path / "dense")
    save_file(dense, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    ids = torch.tensor([[5, 7, 11, 13]])
    ours, theirs = (
        Interpreter(m).run("forward", {"input_ids": ids, "attention_mask": ids >= 0})[0]
        for m in (module, import_checkpoint(tmp_path / "dense"))
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"format": "marlin-24"}, UnsupportedError, "format 'marlin-24' is not supported, only pack-quantized"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, UnsupportedError, "'sparse-24-bitmask' is not supported"),
        ({"transform_config": {"config_groups": {"u": {}}}}, UnsupportedError, "applies transforms at run time"),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "input_activations": {"num_bits": 8}}}},
            UnsupportedError,
            "quantises activations alone",
        ),
        ({"config_groups": {"W4A16": ["Linear"]}}, InputError, "has no config_groups that say how"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(change: dict[str, Any], error: type[Exception], words: str, tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {**SETTINGS, **change}}))
    with pytest.raises(error, match=words):
        import_checkpoint(tmp_path)


def packed_state() -> dict[str, torch.Tensor]:
    made = scheme(num_bits=4, type="int", strategy="group", group_size=32)
    state = {"weight": torch.randn(8, 64, generator=seeded()), "weight_scale": torch.full((8, 2), 0.1)}
    return dict(compressor("pack-quantized").compress(state, made))


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"weight_packed": torch.zeros(8, 7, dtype=torch.int32)}, InputError, "7 words, which hold 64 codes of none of"),
        ({"weight_shape": torch.tensor([8, 60])}, InputError, r"says it is \[8, 60\], but the model wants \[8, 64\]"),
        ({"weight_scale": torch.ones(8, 3)}, UnsupportedError, "has 3 groups, which do not divide its 64 inputs"),
        ({"weight_scale": torch.ones(7, 2)}, InputError, r"'layer\.weight_scale' in .* is float32\[7, 2\]"),
        ({"weight_g_idx": torch.arange(64).flip(0) // 32}, UnsupportedError, r"order of activations \(actorder\)"),
        ({"weight_packed": None}, InputError, "has scales but no codes"),
        ({"weight_packed": None, "weight": torch.zeros(8, 64)}, UnsupportedError, "it was never compressed"),
        ({"weight_packed": torch.zeros(8, 32, dtype=torch.uint8)}, InputError, r"float32\[8, 2\], but .* uint8 \[8, 2\]"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(change: dict[str, torch.Tensor | None], error: type[Exception], words: str) -> None:
    tensors = {k: v for k, v in {**packed_state(), **change}.items() if v is not None}
    with pytest.raises(error, match=words):
        held(tensors, 4, 8, 64)


def test_fp8_of_blocks() -> None:
    with pytest.raises(UnsupportedError, match=r"FP8 scales \[2, 2\] of blocks"):
        held({**fp8(seeded(), 8, 64)[0], "weight_scale": torch.ones(2, 2)}, 8, 8, 64)
