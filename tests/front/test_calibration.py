"""Calibration data from a text: which windows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import planish
from planish.calibration import text_calibration
from planish.codegen.runtime.tokenizer import Tokenizer
from planish.ir import InputError
from planish.model import Model
from planish.passes.quantize import Quantize
from planish.passes.selection import Rule

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama"
TEXT = FOLDER / "heldout.txt"


@pytest.fixture(scope="module")
def model() -> Model:
    return planish.trace(FOLDER, check=False)


@pytest.mark.full
def test_windows_of_the_text(model: Model) -> None:
    data = text_calibration(model, TEXT, samples=20, length=64, seed=3)
    rows = torch.cat([batch["input_ids"] for batch in data.batches])
    assert rows.shape == (20, 64) and bool((rows[:, 0] == 1).all())
    assert all(bool(batch["attention_mask"].all()) for batch in data.batches)
    ids = Tokenizer(FOLDER).encode(TEXT.read_text(encoding="utf-8"), special=False)
    runs = [ids[start : start + 63] for start in range(0, len(ids) - 62, 63)]
    places = [runs.index(row[1:].tolist()) for row in rows]
    assert len(set(places)) == 20, "no window twice"
    again = text_calibration(model, TEXT, samples=20, length=64, seed=3)
    assert data.fingerprint == again.fingerprint
    assert data.fingerprint != text_calibration(model, TEXT, samples=20, length=64, seed=4).fingerprint


@pytest.mark.full
def test_compress_takes_it(model: Model) -> None:
    data = text_calibration(model, TEXT, samples=4, length=64)
    keep = (Rule(kind="embedding", format=8, method="rtn"), Rule(kind="head", format=8, method="rtn"))
    step = Quantize(format=3, group="row", method="gptq", rules=keep, budget=3.0)
    seen: list[str] = []
    small = planish.compress(model, [step], calibration=data, progress=lambda fraction, phrase: seen.append(phrase))
    assert sum("mean squared error" in phrase for phrase in seen) == 42
    assert small.nbytes < model.nbytes / 3
    row = small.reports[-1].passes[0]
    assert float(row.details["bits per weight"]) < 3.4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": 0}, "0 windows of 512 tokens calibrate nothing"),
        ({"length": 1}, "128 windows of 1 tokens calibrate nothing"),
        (
            {"samples": 200},
            "has 60199 tokens, too few for 200 windows of 512; give a longer text, or ask for at most 117",
        ),
    ],
)
def test_sizes_that_are_refused(model: Model, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        text_calibration(model, TEXT, **options)  # type: ignore[arg-type]


def test_texts_that_are_refused(model: Model, tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe\xfa")
    for path, sentence in (
        (empty, "has 0 tokens, too few"),
        (binary, "cannot be read"),
        (tmp_path / "none.txt", "cannot be read"),
    ):
        with pytest.raises(InputError, match=sentence):
            text_calibration(model, path)


def test_models_that_are_refused(model: Model) -> None:
    network = planish.trace(torch.nn.Linear(4, 3), (torch.randn(2, 4),), check=False)
    with pytest.raises(InputError, match="the model has no tokenizer for a calibration text"):
        text_calibration(network, TEXT)
    with pytest.raises(InputError, match="besides tokens and a mask"):
        text_calibration(Model(network.module, FOLDER), TEXT, samples=2)
