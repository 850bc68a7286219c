"""`planish export`: a recipe applied to the bundled model, written for other runtimes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planish.cli.app import run

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama"
RECIPE = """
passes:
  - quantize: {format: 4, group: 32, rules: [{kind: embedding, format: 8}, {kind: head, format: 8}]}
"""


@pytest.mark.full
def test_a_recipe_and_a_format(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "model.gguf"
    recipe.write_text(RECIPE)
    options = ["--recipe", str(recipe), "--format", "gguf", "--no-check", "--json"]
    assert run(["export", str(FOLDER), "--out", str(out), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == str(out) and found["bytes"] == out.stat().st_size < found["weights_before"] / 3
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert types["token_embd.weight"] == "Q8_0" and types["blk.0.attn_q.weight"] == "Q4_0"


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["export", str(FOLDER), "--out", str(tmp_path / "out"), "--format", "onnx", "--no-check"]
    assert run(arguments) == 1
    assert "no format is called 'onnx'; choose one of compressed-tensors, gguf" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
