"""The bundled model without two layers, a quarter of its MLPs' channels, a group of heads and most of its output head: saved,
loaded and run on every target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import planish
from planish.codegen.build import build
from planish.model import Model
from planish.targets.cuda.target import CudaOnHost
from planish.testing.bundled import hold_to_model
from planish.testing.emulated import BUILDS, machine, missing

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "tiny-llama"
PROMPT = (FOLDER / "heldout.txt").read_text(encoding="utf-8")[:120]
WORDS = tuple(range(40, 60))
RECIPE = f"""
passes:
  - drop-layers: {{layers: [2, 3], budget: 20.0}}
  - drop-indices:
      budget: 20.0
      spaces:
        - {{match: 'mlp\\.up_proj', fraction: 0.25}}
        - {{match: k_proj, part: 0, indices: [3]}}
  - prune-vocabulary: {{tokens: {list(WORDS)}}}
  - quantize: {{format: 4, group: 32, budget: 20.0}}
  - quantize-activations
"""

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Compressed with all checks, and ready to be built."""
    recipe = tmp_path_factory.mktemp("recipe") / "pruned.yaml"
    recipe.write_text(RECIPE)
    return planish.prepare(planish.compress(planish.trace(FOLDER, check=False), recipe), check=False)


@pytest.fixture(scope="module")
def folder(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planish.build(small, "host", check=False).save(tmp_path_factory.mktemp("host") / "artifact")


@pytest.fixture(scope="module")
def host(folder: Path) -> Any:
    return planish.load(folder)


def test_the_saved_artifact_says_few_words_and_scores_them_as_the_model(small: Model, host: Any) -> None:
    hold_to_model(small, host, host, PROMPT, 16, distinct=2)
    assert set(host.generate_ids([5, 17, 3], max_new_tokens=40)) <= set(WORDS)


def test_its_size_is_what_its_shape_says(folder: Path) -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    hidden, size = config["hidden_size"], config["head_dim"]
    layers, channels = config["num_hidden_layers"] - 2, config["intermediate_size"] * 3 // 4
    groups = config["num_key_value_heads"] - 1
    queries = groups * config["num_attention_heads"] // config["num_key_value_heads"]

    def weight(rows: int, columns: int) -> int:
        """Bytes of 4-bit codes and float16 scales of groups of 32; rows fill up panels of 16."""
        rows = -(-rows // 16) * 16
        return rows * columns // 2 + rows * columns // 32 * 2

    layer = weight(queries * size, hidden) + 2 * weight(groups * size, hidden) + weight(hidden, queries * size)
    layer += 2 * weight(channels, hidden) + weight(hidden, channels) + 2 * hidden * 4
    head = weight(len(WORDS), hidden) + config["vocab_size"] * 8
    table = config["vocab_size"] * (hidden // 2 + hidden // 32 * 2)
    expected = layers * layer + head + table + hidden * 4 + size // 2 * 4
    path, kinds = folder / "weights.safetensors", {"U8": 1, "F16": 2, "F32": 4, "I64": 8}
    stored = 0
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            elements = 1
            for dim in part.get_shape():
                elements *= dim
            stored += elements * kinds[part.get_dtype()]
    assert stored == expected
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + expected


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("name", sorted(BUILDS))
@pytest.mark.nightly
def test_on_an_emulated_arm_machine(name: str, small: Model, host: Any, tmp_path: Path) -> None:
    saved = planish.build(small, f"arm:{name}", check=False).save(tmp_path / "artifact")
    hold_to_model(small, planish.load(saved, device=machine(BUILDS[name])), host, PROMPT, 16, distinct=2)  # type: ignore[arg-type]


@pytest.mark.nightly
def test_thread_after_thread(small: Model, host: Any) -> None:
    program: Any = build(small.module, CudaOnHost(), tokenizer=FOLDER).load()
    hold_to_model(small, program, host, PROMPT, 8, distinct=2)
