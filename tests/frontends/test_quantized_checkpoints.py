"""Weights that other packages quantised keep their codes and scales, and mean what their formats say they mean."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import planish
from planish.frontends import import_checkpoint
from planish.frontends.quantized.awq import Awq
from planish.frontends.quantized.base import Method
from planish.frontends.quantized.gptq import Gptq
from planish.frontends.quantized.modelopt import ModelOpt
from planish.ir import (
    Dense,
    Float8,
    GroupedInt,
    InputError,
    Interpreter,
    NvFp4,
    Param,
    PlanishError,
    UnsupportedError,
)
from planish.passes.dead_code import DeadCode
from planish.testing.architectures import random_model
from planish.testing.quantized import Made, awq, fp8, gptq, nvfp4, param_of, requantize

SEEDS = st.integers(0, 2**31)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}
METHODS: dict[str, tuple[dict[str, Any], Callable[..., Made]]] = {
    "gptq": (GPTQ, gptq),
    "awq": (AWQ, awq),
    "modelopt": (MODELOPT, nvfp4),
}
UP = "model.layers.0.mlp.up_proj"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def held(tensors: Mapping[str, torch.Tensor], method: Method, outs: int, ins: int) -> Param:
    """The parameter, its storage read while its file is there."""
    with tempfile.TemporaryDirectory() as folder:
        param = param_of(Path(folder), tensors, method, outs, ins)
        return planish.ir.params.Param(param.name, param.type, param.encoding, planish.ir.InMemory(param.storage()))


@given(
    seed=SEEDS,
    bits=st.sampled_from([2, 3, 4, 8]),
    outs=st.sampled_from([32, 64, 96]),
    groups=st.integers(1, 3),
    second=st.booleans(),
)
def test_gptq(seed: int, bits: int, outs: int, groups: int, second: bool) -> None:
    added = 0 if second else 1
    tensors, weight = gptq(seeded(seed), outs, 32 * groups, bits, 32, added=added)
    method = Gptq.of({"checkpoint_format": "gptq_v2" if second else "gptq"})
    param = held(tensors, method, outs, 32 * groups)
    assert param.encoding == GroupedInt(bits, 32, torch.float16, zero_points=True)
    assert torch.equal(param.value(), weight)
    assert torch.equal(param.storage()["scales"], tensors["scales"].T)


@given(seed=SEEDS, outs=st.integers(1, 6), groups=st.integers(1, 3), whole=st.booleans())
def test_awq(seed: int, outs: int, groups: int, whole: bool) -> None:
    tensors, weight = awq(seeded(seed), 8 * outs, 16 * groups, 16 * groups if whole else 16)
    param = held(tensors, Awq(), 8 * outs, 16 * groups)
    encoding = param.encoding
    assert isinstance(encoding, GroupedInt) and encoding.bits == 4 and encoding.group == (16 * groups if whole else 16)
    assert torch.equal(param.value(), weight)


@given(seed=SEEDS, outs=st.integers(1, 9), blocks=st.integers(1, 4))
def test_modelopt_nvfp4(seed: int, outs: int, blocks: int) -> None:
    tensors, weight = nvfp4(seeded(seed), outs, 16 * blocks)
    param = held(tensors, ModelOpt(), outs, 16 * blocks)
    assert param.encoding == NvFp4() and torch.equal(param.value(), weight)
    storage = param.storage()
    assert torch.equal(storage["values"], tensors["weight"])
    assert torch.equal(storage["scales"], tensors["weight_scale"].view(torch.uint8))
    assert torch.equal(storage["tensor_scale"], tensors["weight_scale_2"])


@given(seed=SEEDS, outs=st.integers(2, 9), ins=st.integers(1, 9), scaled=st.sampled_from(["tensor", "row"]))
def test_modelopt_fp8(seed: int, outs: int, ins: int, scaled: str) -> None:
    tensors, weight = fp8(seeded(seed), outs, ins, () if scaled == "tensor" else (outs, 1))
    param = held(tensors, ModelOpt(), outs, ins)
    assert param.encoding == Float8(scaled) and torch.equal(param.value(), weight)  # type: ignore[arg-type]


def test_nvfp4_of_the_specification() -> None:
    """The codes and scales of a known tensor, and the first values that they stand for."""
    packed = bytes.fromhex("bc9a103254656677" + "b391f702e6d5d5f7")
    tensors = {
        "weight": torch.frombuffer(bytearray(packed), dtype=torch.uint8).reshape(1, 16),
        "weight_scale": torch.tensor([[0x7E, 0x66]], dtype=torch.uint8).view(torch.float8_e4m3fn),
        "weight_scale_2": torch.tensor(0.00102306553),
    }
    first, second = held(tensors, ModelOpt(), 1, 32).value()[0].split(16)
    assert torch.allclose(first[:6], torch.tensor([-0.916667, -0.6875, -0.458333, -0.229167, 0, 0.229167]), atol=1e-6)
    assert torch.allclose(second[:5], torch.tensor([0.085938, -0.085938, 0.028646, -0.028646, 0.34375]), atol=1e-6)


@pytest.mark.parametrize("made, method", [(gptq, Gptq()), (awq, Awq())])
def test_zero_points_in_the_middle_are_none(made: Callable[..., Made], method: Method) -> None:
    tensors, weight = made(seeded(), 32, 64, zero=8)
    param = held(tensors, method, 32, 64)
    assert param.encoding == GroupedInt(4, 32) and torch.equal(param.value(), weight)


def test_awq_without_zero_points() -> None:
    tensors, weight = awq(seeded(), 16, 32, zero=8)
    param = held({k: v for k, v in tensors.items() if k != "qzeros"}, Awq(zero_points=False), 16, 32)
    assert param.encoding == GroupedInt(4, 32) and torch.equal(param.value(), weight)


def checkpoint(folder: Path, method: str) -> dict[str, torch.Tensor]:
    random_model("llama").save_pretrained(folder)
    settings, make = METHODS[method]
    generator = seeded(7)
    return requantize(folder, settings, lambda outs, ins: make(generator, outs, ins))


def logits(module: planish.ir.Module) -> torch.Tensor:
    ids = torch.randint(3, 97, (2, 9), generator=seeded(2))
    return Interpreter(module).run("forward", {"input_ids": ids, "attention_mask": ids >= 0})[0]


@pytest.mark.filterwarnings("ignore:the checkpoint")
@pytest.mark.parametrize("method", [m if m == "gptq" else pytest.param(m, marks=pytest.mark.full) for m in METHODS])
def test_a_model_computes_what_its_dense_copy_does(method: str, tmp_path: Path) -> None:
    """Bit for bit: the weights are the same numbers, only held otherwise."""
    (tmp_path / "quantised").mkdir()
    dense = checkpoint(tmp_path / "quantised", method)
    module = import_checkpoint(tmp_path / "quantised")
    random_model("llama").save_pretrained(tmp_path / "dense")
    save_file(dense, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(module), logits(import_checkpoint(tmp_path / "dense")))
    assert module.metadata["quantization"] == method
    assert not isinstance(module.params[f"{UP}.weight"].encoding, Dense)
    assert module.params["lm_head.weight"].encoding == Dense(torch.float32)
    assert module.params[f"{UP}.weight"].nbytes < 96 * 64


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:the checkpoint")
def test_from_a_quantised_checkpoint_to_a_program(tmp_path: Path) -> None:
    """The compiled program is as near to the dense checkpoint in float64 as four times float32's own error."""
    (tmp_path / "quantised").mkdir()
    dense = checkpoint(tmp_path / "quantised", "awq")
    random_model("llama").save_pretrained(tmp_path / "dense")
    save_file(dense, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    model = planish.compress(planish.trace(tmp_path / "quantised", check=False), [DeadCode()])
    assert isinstance(model.module.params[f"{UP}.weight"].encoding, GroupedInt)
    found = torch.from_numpy(
        planish.build(model, target="host", check=False).load().logits([5, 7, 11, 13, 17])
    ).double()
    ids = torch.tensor([[5, 7, 11, 13, 17]])
    plain, exact = (
        Interpreter(import_checkpoint(tmp_path / "dense"), promote=promote)
        .run("forward", {"input_ids": ids, "attention_mask": ids >= 0})[0][0]
        .double()
        for promote in (False, True)
    )
    assert float((found - exact).abs().max()) <= 4 * float((plain - exact).abs().max())


def test_what_is_not_done_is_said(tmp_path: Path) -> None:
    checkpoint(tmp_path, "modelopt")
    with pytest.warns(UserWarning, match="keeps cached keys and values as FP8, which here stay as they are"):
        module = import_checkpoint(tmp_path)
    notes = module.metadata["quantization_notes"]
    assert len(notes) == 2 and notes[0].startswith("the checkpoint's quant_algo is NVFP4")


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    checkpoint(tmp_path, "modelopt")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A16", "kv_cache_quant_algo": None}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="quant_algo is W4A16"):
        assert import_checkpoint(tmp_path).params[f"{UP}.weight"].encoding == NvFp4()
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(InputError, match=r"hf_quant_config\.json cannot be read"):
        import_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "method, change, error, words",
    [
        ("gptq", {"quant_method": "hqq"}, UnsupportedError, "'hqq' is not supported; supported are gptq, awq"),
        ("gptq", {"checkpoint_format": "marlin"}, UnsupportedError, "layout 'marlin' are not supported"),
        ("awq", {"version": "gemv"}, UnsupportedError, "version 'gemv' with 4 bits are not supported"),
        ("gptq", {"checkpoint_format": ["gptq"]}, InputError, "config of .* is malformed for gptq: unhashable"),
        ("modelopt", {"quantization": "NVFP4"}, InputError, "is malformed for modelopt: 'str' object has no"),
        ("awq", {"bits": 3}, UnsupportedError, "version 'gemm' with 3 bits are not supported"),
    ],
)
def test_settings_that_are_refused(
    method: str, change: dict[str, object], error: type[PlanishError], words: str, tmp_path: Path
) -> None:
    random_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {**METHODS[method][0], **change}})
    )
    with pytest.raises(error, match=words):
        import_checkpoint(tmp_path)


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def _with(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    "make, method, change, error, words",
    [
        (gptq, Gptq(), _without("qzeros"), InputError, r"'layer' lacks layer\.qzeros"),
        (gptq, Gptq(), _with("g_idx", lambda t: t.flip(0)), UnsupportedError, "order of activations"),
        (gptq, Gptq(), _with("scales", lambda t: t[:, :5]), InputError, r"'layer\.scales' in .* is float16\[2, 5\]"),
        (gptq, Gptq(), _with("scales", lambda t: t.double()), InputError, r"is float64\[2, 32\], but .* float16 or"),
        (gptq, Gptq(), _with("qweight", lambda t: t[:5]), InputError, "5 rows of words, which hold 64 codes of no"),
        (gptq, Gptq(), _with("qzeros", lambda t: torch.full_like(t, -1)), UnsupportedError, "zero point 15 in GPTQ's"),
        (awq, Awq(), _without("qzeros"), InputError, "lacks its qzeros"),
        (awq, Awq(), _without("scales"), InputError, r"lacks layer\.scales"),
        (awq, Awq(), _with("qweight", lambda t: t.T), InputError, r"is int32\[4, 64\], but .* ask for int32 \[64, 4\]"),
        (awq, Awq(), _with("scales", lambda t: t[[0, 1, 1]]), UnsupportedError, "3 groups, which do not divide its 64"),
        (nvfp4, ModelOpt(), _without("weight_scale_2"), UnsupportedError, "neither NVFP4 nor FP8"),
        (nvfp4, ModelOpt(), _without("weight"), InputError, r"lacks layer\.weight"),
        (fp8, ModelOpt(), _with("weight_scale", lambda t: t.expand(4, 8)), UnsupportedError, "of blocks, not of rows"),
        (
            nvfp4,
            ModelOpt(),
            _with("weight_scale", lambda t: torch.full(t.shape, 255, dtype=torch.uint8).view(t.dtype)),
            InputError,
            "holds NaN",
        ),
        (
            nvfp4,
            ModelOpt(),
            lambda t: t.update(pre_quant_scale=torch.ones(64)),
            UnsupportedError,
            "scales its input at run time",
        ),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(
    make: Callable[..., Made],
    method: Method,
    change: Callable[[dict[str, torch.Tensor]], object],
    error: type[PlanishError],
    words: str,
) -> None:
    tensors = dict(make(seeded(), 32, 64)[0])
    change(tensors)
    with pytest.raises(error, match=words):
        held(tensors, method, 32, 64)


def test_a_bias_of_zeros_that_the_model_has_not(tmp_path: Path) -> None:
    checkpoint(tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, f"{UP}.bias": torch.zeros(96)}, tmp_path / "model.safetensors")
    import_checkpoint(tmp_path)
    save_file({**tensors, f"{UP}.bias": torch.ones(96)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"no place for \({UP}\.bias\)"):
        import_checkpoint(tmp_path)


def test_weights_that_are_not_rows_of_a_linear_map(tmp_path: Path) -> None:
    """GPT-2 multiplies by the transpose of its square weights, whose shape says nothing."""
    random_model("gpt2").save_pretrained(tmp_path)
    requantize(tmp_path, GPTQ, lambda outs, ins: gptq(seeded(), outs, ins), ignore="transformer.wpe")
    with pytest.raises(UnsupportedError, match="belongs to a Conv1D, which is no linear map"):
        import_checkpoint(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    checkpoint(tmp_path, "gptq")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is truncated or not a safetensors file"):
        import_checkpoint(tmp_path)
