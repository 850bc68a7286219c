"""Checkpoints written in the format of compressed-tensors hold what the model holds, as the package itself reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import planish
from planish.exporting import export
from planish.exporting.compressed_tensors import Scheme, scheme_of
from planish.exporting.safetensors_file import Part, write_safetensors
from planish.exporting.same_program import meaning
from planish.frontends import import_checkpoint
from planish.frontends.quantized.compressed_tensors import CompressedTensors
from planish.ir import (
    Encoding,
    Float8,
    GroupedInt,
    InMemory,
    InputError,
    Levels,
    MxFp4,
    NvFp4,
    Param,
    TensorType,
)
from planish.ir.ops import RmsNorm
from planish.model import Model
from planish.passes.dead_code import DeadCode
from planish.passes.fuse_horizontal import FuseHorizontal
from planish.passes.quantize_activations import QuantizeActivations
from planish.testing.architectures import random_model
from planish.testing.quantized import param_of

UP, DOWN, QUERY = (
    f"model.layers.0.{n}_proj.weight" for n in ("mlp.up", "mlp.down", "self_attn.q")
)  # fmt: skip
INVERSE = "model.rotary_emb.inv_freq"
ENCODINGS: dict[str, Encoding] = {
    UP: GroupedInt(4, 32),
    DOWN: GroupedInt(3, 32, torch.float32, zero_points=True),
    QUERY: Float8("row"),
    "model.layers.0.self_attn.k_proj.weight": MxFp4(),
    "model.layers.0.self_attn.v_proj.weight": Float8("tensor"),
    "model.layers.1.mlp.up_proj.weight": GroupedInt(8, 64, torch.bfloat16),
    "lm_head.weight": GroupedInt(4, 32),
}


def encoded(model: Model, encodings: Mapping[str, Encoding]) -> Model:
    """The model with some weights in other encodings, rounded plainly."""
    given = [model.module.params[name] for name in encodings]
    made = [replace(p, encoding=(e := encodings[p.name]), source=InMemory(e.encode(p.value()))) for p in given]
    return replace(model, module=model.module.with_params(made))


@pytest.fixture(scope="module")
def traced(checkpoint: Path) -> Model:
    return planish.trace(checkpoint, check=False)


@pytest.fixture(scope="module")
def written(traced: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model in several encodings with int8 activations, and the folder that it was exported to."""
    model = planish.compress(encoded(traced, ENCODINGS), [QuantizeActivations(), DeadCode()], check=False)
    return model, export(model, tmp_path_factory.mktemp("export") / "folder")


@pytest.mark.full
def test_what_is_written_is_read_back(written: tuple[Model, Path]) -> None:
    model, folder = written
    read = import_checkpoint(folder)
    for name, param in model.module.params.items():
        assert read.params[name].encoding == param.encoding
        assert read.params[name].digest() == param.digest()
    assert read.metadata["quantization"] == "compressed-tensors" and not read.metadata["quantization_notes"]


@pytest.mark.full
def test_the_folder_is_a_checkpoint(written: tuple[Model, Path], checkpoint: Path) -> None:
    folder = written[1]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    assert config == json.loads((checkpoint / "config.json").read_text())
    assert settings["format"] == "mixed-precision"
    targets = [t for group in settings["config_groups"].values() for t in group["targets"]]
    assert sorted(f"{t}.weight" for t in targets) == sorted(ENCODINGS)
    assert "model.layers.0.mlp.gate_proj" in settings["ignore"] and not set(targets) & set(settings["ignore"])
    package = pytest.importorskip("compressed_tensors.quantization")
    assert len(package.QuantizationConfig.model_validate(settings).config_groups) == len(settings["config_groups"])


@pytest.mark.full
def test_transformers_reads_the_same_weights(traced: Model, tmp_path: Path) -> None:
    """All but zero points, for which the package makes room of a wrong shape when transformers loads a model."""
    pytest.importorskip("compressed_tensors")
    import transformers

    some = {n: e for n, e in ENCODINGS.items() if n not in (DOWN, "model.layers.0.self_attn.k_proj.weight")}
    model = encoded(traced, some)
    folder = export(model, tmp_path / "folder")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[5, 7, 11, 13]])
    loaded(ids)  # its weights are decompressed by the first call
    for name in some:
        assert torch.equal(loaded.get_submodule(name.removesuffix(".weight")).weight, model.module.params[name].value())


@pytest.mark.full
def test_an_export_of_an_export_is_the_same(written: tuple[Model, Path], tmp_path: Path) -> None:
    again = export(planish.trace(written[1], check=False), tmp_path / "again")
    one, other = load_file(written[1] / "model.safetensors"), load_file(again / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(_bits(one[k]), _bits(other[k])) and one[k].dtype == other[k].dtype for k in one)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def param(encoding: Encoding, outs: int, ins: int, seed: int = 0) -> Param:
    values = torch.randn(outs, ins, generator=torch.Generator().manual_seed(seed))
    return Param("layer.weight", TensorType(torch.float32, (outs, ins)), encoding, InMemory(encoding.encode(values)))


def scheme(param: Param) -> Scheme:
    found = scheme_of("layer.weight", param)
    assert found is not None
    return found


def theirs(scheme: Scheme) -> torch.Tensor:
    """What the package makes of the tensors that a scheme writes."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    arguments = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(**scheme.settings)
    )
    decompressed = compressors.BaseCompressor.get_value_from_registry(scheme.format).decompress(
        {name: t.clone(memory_format=torch.contiguous_format) for name, t in scheme.make().items()}, arguments
    )
    weight: torch.Tensor = decompressed["weight"]
    return weight


# The package cannot unpack zero points that fill less than a word, as those of fewer than nine rows of four bits do.
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(1, 8),
    outs=st.integers(9, 17),
    groups=st.integers(1, 3),
    group=st.sampled_from([8, 24, 32]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    zero_points=st.booleans(),
)
def test_integers(
    seed: int, bits: int, outs: int, groups: int, group: int, dtype: torch.dtype, zero_points: bool
) -> None:
    """Scales of either sign. The package rounds a product to the scales' dtype, float32 holds it exactly."""
    made = param(GroupedInt(bits, group, dtype, zero_points), outs, groups * group, seed)
    assert torch.equal(theirs(scheme(made)), made.value().to(dtype))


@given(seed=st.integers(0, 2**31), outs=st.integers(2, 9), blocks=st.integers(1, 3))
def test_floats(seed: int, outs: int, blocks: int) -> None:
    for encoding in (Float8("row"), Float8("tensor")):
        made = param(encoding, outs, 16 * blocks, seed)
        assert torch.equal(theirs(scheme(made)), made.value())
    made = param(MxFp4(), outs, 32 * blocks, seed)
    assert torch.equal(theirs(scheme(made)), made.value().to(torch.bfloat16))


@given(seed=st.integers(0, 2**31), outs=st.integers(1, 9), blocks=st.integers(1, 3))
def test_nvfp4(seed: int, outs: int, blocks: int) -> None:
    """Codes and scales of blocks are what they are; dividing by the float32 nearest to a reciprocal and rounding to bfloat16
    is off by less than 2^-22 and 2^-8. Reading it back finds the tensor's scale within two roundings, 2^-23."""
    made = param(NvFp4(), outs, 16 * blocks, seed)
    written = scheme(made)
    ours, packages = made.value().double(), theirs(written).double()
    assert bool(((ours - packages).abs() <= ours.abs() * (2.0**-8 + 2.0**-22)).all())
    storage, tensors = made.storage(), written.make()
    assert torch.equal(tensors["weight_packed"], storage["values"])
    assert torch.equal(_bits(tensors["weight_scale"]), storage["scales"])
    back = tensors["weight_global_scale"].reciprocal() / storage["tensor_scale"]
    assert bool((back - 1).abs() <= 2.0**-22)


@pytest.mark.parametrize(
    "encoding",
    [GroupedInt(5, 16), GroupedInt(6, 48, torch.bfloat16, zero_points=True), Float8("row"), MxFp4()],
    ids=str,
)
def test_our_reader_finds_the_same_storage(encoding: Encoding, tmp_path: Path) -> None:
    made = param(encoding, 7, 96)
    method = CompressedTensors(bits=frozenset({getattr(encoding, "bits", 8)}))
    read = param_of(tmp_path, scheme(made).make(), method, 7, 96)
    assert read.encoding == encoding and read.digest() == made.digest()


@pytest.mark.parametrize("encoding", [Levels("ternary", 32), Levels("sign", 32), Levels("stretched", 32)], ids=str)
def test_levels_are_refused(encoding: Encoding) -> None:
    with pytest.raises(InputError, match=rf"cannot hold 'layer\.weight' as {encoding}; quantise it to integers"):
        scheme_of("layer.weight", param(encoding, 4, 64))


def test_scales_of_int8_are_refused() -> None:
    with pytest.raises(InputError, match="as int4g32si8; quantise it with scales of float16, bfloat16 or float32"):
        scheme_of("layer.weight", param(GroupedInt(4, 32, torch.int8), 4, 64))


def test_a_scale_without_a_reciprocal() -> None:
    made = param(NvFp4(), 2, 16)
    tiny = replace(made, source=InMemory({**made.storage(), "tensor_scale": torch.tensor(1e-42)}))
    with pytest.raises(InputError, match=r"scale 1.*e-42 of 'layer\.weight' has no reciprocal in float32"):
        scheme(tiny).make()


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda m: encoded(m, {"model.embed_tokens.weight": GroupedInt(4, 32)}),
            r"'model\.embed_tokens.*leave embeddings",
        ),
        (lambda m: replace(m, folder=None), "not traced from a checkpoint folder with a tokenizer"),
        (
            lambda m: planish.compress(m, [FuseHorizontal()], check=False),
            "rewritten into something that no weights of a Llama",
        ),
        (
            lambda m: replace(
                m,
                module=m.module.with_params(
                    [replace(m.module.params[INVERSE], source=InMemory({"values": torch.ones(8)}))]
                ),
            ),
            r"constant 'model\.rotary_emb\.inv_freq' was changed",
        ),
    ],
    ids=["embedding", "elsewhere", "fused", "constant"],
)
def test_models_that_are_refused(
    traced: Model, change: Callable[[Model], Model], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planish.tracing.trace", lambda *args, **options: traced)
    with pytest.raises(InputError, match=words):
        export(change(traced), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_meaning_sees_operations_and_names_of_parameters(traced: Model) -> None:
    forward = traced.module.functions["forward"]
    assert meaning(planish.compress(traced, [DeadCode()], check=False).module.functions["forward"]) == meaning(forward)
    quantized = planish.compress(encoded(traced, {UP: GroupedInt(4, 32)}), [QuantizeActivations()], check=False)
    assert len(quantized.module.functions["forward"].nodes) > len(forward.nodes)
    assert meaning(quantized.module.functions["forward"]) == meaning(forward)
    node = next(n for n in forward.nodes if isinstance(n.op, RmsNorm))
    others = {"op": replace(node.op, eps=1e-3), "inputs": (node.inputs[0], replace(node.inputs[1], name="other"))}
    for field, other in others.items():
        nodes = tuple(replace(n, **{field: other}) if n is node else n for n in forward.nodes)
        assert meaning(replace(forward, nodes=nodes)) != meaning(forward)


def test_targets_that_are_refused(traced: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no format is called 'onnx'; choose one of compressed-tensors, gguf"):
        export(traced, tmp_path / "x", format="onnx")
    monkeypatch.setattr("planish.tracing.trace", lambda *args, **options: traced)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match=r"full exists; choose another name"):
        export(traced, tmp_path / "full")
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export(traced, tmp_path / "empty")
    config = json.loads((tmp_path / "empty" / "config.json").read_text())
    assert "quantization_config" not in config
    with pytest.raises(InputError, match="cannot export to"):
        export(traced, tmp_path / "full" / "note.txt" / "below")

    def fails(path: Path, parts: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("planish.exporting.compressed_tensors.write_safetensors", fails)
    with pytest.raises(InputError, match="disk full; nothing was written"):
        export(traced, tmp_path / "third")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full"]


def test_a_part_that_is_not_what_it_said(tmp_path: Path) -> None:
    part = Part({"x": (torch.float32, (2,))}, lambda: {"x": torch.zeros(3)})
    with pytest.raises(InputError, match=r"'x' is torch\.float32\[3\], but"):
        write_safetensors(tmp_path / "x.safetensors", [part])


@pytest.mark.full
def test_weights_that_are_no_tensors_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """GPT-2's are transposed when they are traced."""
    folder = tmp_path / "gpt2"
    random_model("gpt2").save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(InputError, match="is computed from tensors of the checkpoint and is none itself"):
        export(planish.trace(folder, check=False), tmp_path / "out")
