"""Bad input is refused with one sentence that says what, where and what to do; nothing is left half-done."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import planish
from planish.codegen.artifact import Artifact
from planish.codegen.runtime.manifest import MANIFEST, WEIGHTS, identity, read_manifest
from planish.ir import InputError, UnsupportedError
from planish.passes.quantize import Quantize

QUERY = "model.layers.0.self_attn.q_proj.weight"
SHARD = "model-00002-of-"


def refusal(action: Callable[[], object], kind: type[Exception] = InputError) -> str:
    """The sentence of an error, which stands in one line."""
    with pytest.raises(kind) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def sharded(reference: torch.nn.Module, tmp_path: Path) -> Path:
    """A checkpoint whose weights are in several files."""
    reference.float().save_pretrained(tmp_path / "sharded", max_shard_size="100KB")  # type: ignore[operator]
    return tmp_path / "sharded"


def shard(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.name.startswith(SHARD))


def test_a_missing_shard(sharded: Path) -> None:
    name = shard(sharded).name
    shard(sharded).unlink()
    sentence = refusal(lambda: planish.trace(sharded))
    assert sentence.endswith(f"lacks {name}, which model.safetensors.index.json lists; download the missing shards")


def test_a_truncated_shard(sharded: Path) -> None:
    path = shard(sharded)
    path.write_bytes(path.read_bytes()[:-7])
    sentence = refusal(lambda: planish.trace(sharded))
    assert sentence.startswith(f"{path} is truncated or not a safetensors file")
    assert sentence.endswith("download it again")


def changed(checkpoint: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Path:
    """A copy of the checkpoint with one weight changed, or dropped."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    made = change(tensors.pop(QUERY))
    save_file(tensors if made is None else {**tensors, QUERY: made}, folder / "model.safetensors")
    return folder


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: None, f"lacks the weights {QUERY} of LlamaForCausalLM"),
        (lambda w: w[:32].clone(), f"parameter '{QUERY}' has shape [32, 64] in model.safetensors, but the config asks"),
        (lambda w: w.long(), f"'{QUERY}' is stored as int64[64, 64] in model.safetensors without the scales of a"),
        (
            lambda w: w.to(torch.float8_e4m3fn),
            "is stored as float8_e4m3fn[64, 64] in model.safetensors without the scales",
        ),
        (lambda w: w.index_fill(0, torch.tensor([3]), float("nan")), f"the weights {QUERY} hold NaN or infinity"),
    ],
    ids=["missing", "shape", "dtype", "unknown dtype", "NaN"],
)
def test_a_wrong_weight(
    checkpoint: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor | None], sentence: str
) -> None:
    folder = changed(checkpoint, tmp_path / "changed", change)
    assert sentence in refusal(lambda: planish.trace(folder))


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(lambda: planish.trace(tmp_path))
    assert "needs example inputs" in refusal(lambda: planish.trace(torch.nn.Identity()))


class _Strange(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.linalg.svdvals(x).sum() + torch.linalg.qr(x)[0].sum()
        return y


def test_unknown_operations_are_all_listed() -> None:
    model = planish.trace(_Strange(), (torch.randn(4, 5),))
    sentence = refusal(lambda: planish.build(model), UnsupportedError)
    assert "aten.linalg_svdvals.default" in sentence and "aten.linalg_qr.default" in sentence
    assert sentence.count(Path(__file__).name) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pases: []\n", "has the unknown key 'pases'; did you mean 'passes'?"),
        ("passes: [quantise]\n", "did you mean 'quantize'?"),
        ("passes: [{quantize: {gruop: 32}}]\n", "'gruop'"),
        ("passes: [{quantize: {format: four}}]\n", "format"),
        ("passes: []\npasses: []\n", "the key 'passes' stands twice in line 1"),
        ("passes: [\n", "is not YAML"),
    ],
)
def test_recipes(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    model = planish.trace(torch.nn.Linear(3, 2), (torch.randn(4, 3),))
    message = refusal(lambda: planish.compress(model, path))
    assert sentence in message and str(path) in message


def test_a_group_that_does_not_divide() -> None:
    model = planish.trace(torch.nn.Linear(96, 64), (torch.randn(4, 96),))
    sentence = refusal(lambda: planish.compress(model, [Quantize(group=64)]), Exception)
    assert "a group of 64 does not divide the last axis" in sentence


def test_an_unknown_target() -> None:
    model = planish.trace(torch.nn.Linear(3, 2), (torch.randn(4, 3),))
    assert refusal(lambda: planish.build(model, "hots")) == "there is no target 'hots'; did you mean 'host'?"


def write_artifact(folder: Path, **facts: object) -> Path:
    """An artifact without code: what is checked here is checked before code is opened."""
    target = {"name": "host", "device": "cpu", "features": []}
    manifest = {**identity(), "target": target, "functions": {}, "states": {}, "metadata": {}, "report": {}, **facts}
    return Artifact(manifest, {WEIGHTS: lambda path: path.write_bytes(bytes(range(100))) and None}).save(folder)


def test_a_size_that_was_not_traced() -> None:
    rows = torch.export.Dim("N", min=8, max=64)
    model = planish.trace(torch.nn.Linear(4, 2), (torch.ones(9, 4),), dynamic_shapes=({0: rows},))
    program = planish.build(model).load()
    assert program(torch.ones(64, 4)).shape == (64, 2)
    for size in (7, 65):
        sentence = refusal(lambda size=size: program(torch.ones(size, 4)))  # type: ignore[misc]
        assert sentence == f"N is {size} in these tensors, but forward was traced for 8 to 64"


def test_an_artifact_with_a_changed_byte(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "artifact")
    read_manifest(folder)
    path = folder / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    assert refusal(lambda: planish.load(folder)).startswith(f"{path} is not the file that was written (its SHA-256")
    path.write_bytes(whole[:50])
    assert refusal(lambda: planish.load(folder)).startswith(f"{path} has 50 bytes, but 100 were written")
    path.unlink()
    assert refusal(lambda: planish.load(folder)).endswith(f"lacks its file {WEIGHTS}; compile the model again")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"format": 0}, "was written by artifact format 0, but this is artifact format"),
        ({"planish": "0.0.1"}, "was written by planish 0.0.1, but this is planish"),
        ({"tvm": "0.1"}, "was written by TVM 0.1, but this is TVM"),
    ],
)
def test_an_artifact_of_another_version(tmp_path: Path, facts: dict[str, object], sentence: str) -> None:
    folder = write_artifact(tmp_path / "artifact", **facts)
    message = refusal(lambda: planish.load(folder))
    assert sentence in message and "compile the model again" in message


def test_an_artifact_for_another_processor(tmp_path: Path) -> None:
    target = {"name": "host", "device": "cpu", "features": ["nosuchunit"]}
    folder = write_artifact(tmp_path / "artifact", target=target)
    sentence = refusal(lambda: planish.load(folder))
    assert "compiled for a processor with nosuchunit, which this machine's lacks" in sentence


def test_what_is_no_artifact(tmp_path: Path) -> None:
    assert "is no artifact" in refusal(lambda: planish.load(tmp_path / "nowhere"))
    folder = write_artifact(tmp_path / "artifact")
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text[:40], encoding="utf-8")
    assert "is damaged" in refusal(lambda: planish.load(folder))
    (folder / MANIFEST).write_text("[1]", encoding="utf-8")
    assert "is no manifest" in refusal(lambda: planish.load(folder))


def full_disk(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    artifact = Artifact(identity(), {"first": lambda path: path.write_bytes(b"1") and None, WEIGHTS: full_disk})
    sentence = refusal(lambda: artifact.save(tmp_path / "artifact"))
    assert sentence == f"cannot save the artifact to {tmp_path / 'artifact'}: the disk is full; nothing was written"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_artifact_that_is_there(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "artifact")
    before = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    refusal(lambda: Artifact(identity(), {WEIGHTS: full_disk}).save(folder))
    assert read_manifest(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no artifact" in refusal(lambda: write_artifact(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"
