"""Laws of the training script's parts: what a step sees, what is held out, and that an interruption changes nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BOS = 1


def part(name: str) -> ModuleType:
    """Import a module of the example, which is run as a script and hence is not an installed package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module(f"tiny_llama_training.{name}")


corpus, loop, measure = part("corpus"), part("loop"), part("measure")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are taken in one order, so that equal runs have equal bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(recipe: object, checkpoint: Path, seed: int = 3) -> object:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    stream = torch.randint(2, 40, (700,), generator=torch.Generator().manual_seed(5))
    return loop.Trainer(transformers.LlamaForCausalLM(config), stream, recipe, {"text": "drawn"}, checkpoint)


SMALL = loop.Recipe(
    steps=6, tokens_per_step=64, short_context=8, short_steps=2, context=16, long_context=32, warmup_steps=2
)


def weights(run: object) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in run.model.named_parameters()}  # type: ignore[attr-defined]


def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = trainer(SMALL, tmp_path / "whole.safetensors")
    whole.run(BOS, compiled=False)  # type: ignore[attr-defined]

    stopped = trainer(SMALL, tmp_path / "stopped.safetensors")

    class Interrupted(Exception):
        pass

    draw = loop.draw_windows

    def stop_at_five(stream: torch.Tensor, recipe: object, step: int, bos: int) -> torch.Tensor:
        if step == 5:
            raise Interrupted
        drawn: torch.Tensor = draw(stream, recipe, step, bos)
        return drawn

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "draw_windows", stop_at_five)
        stopped.run(BOS, compiled=False, save_every=4)  # type: ignore[attr-defined]

    resumed = trainer(SMALL, tmp_path / "stopped.safetensors", seed=99)
    assert resumed.step == 4  # type: ignore[attr-defined]
    resumed.run(BOS, compiled=False)  # type: ignore[attr-defined]
    expected = weights(whole)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run = trainer(SMALL, tmp_path / "run.safetensors")
    run.run(BOS, compiled=False)  # type: ignore[attr-defined]
    with pytest.raises(loop.CheckpointError, match="another text, recipe or model shape; remove it"):
        trainer(replace(SMALL, weight_decay=0.2), tmp_path / "run.safetensors")


@given(step=st.integers(0, 2899), length=st.integers(1025, 40_000))
def test_windows_are_runs_of_the_stream_led_by_bos(step: int, length: int) -> None:
    recipe = loop.Recipe()
    windows = loop.draw_windows(torch.arange(length), recipe, step, -1)
    assert windows.shape[0] * (windows.shape[1] - 1) == recipe.tokens_per_step
    assert bool((windows[:, 0] == -1).all())
    assert bool((windows[:, 2:] - windows[:, 1:-1] == 1).all())
    assert int(windows[:, 1].min()) >= 0 and int(windows.max()) < length


def test_windows_cover_the_stream() -> None:
    """After two streams' worth of tokens nothing but the ends is unseen."""
    recipe, stream = loop.Recipe(), torch.arange(50_000)
    seen = torch.zeros(50_000, dtype=torch.bool)
    for step in range(2 * 50_000 // recipe.tokens_per_step + 1):
        seen[loop.draw_windows(stream, recipe, step, 0)[:, 1:]] = True
    assert float(seen.double().mean()) > 0.95


def test_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    recipe = loop.Recipe()
    rates = [recipe.learning_rate(step) for step in range(recipe.steps + 1)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(recipe.peak_learning_rate, rel=1e-15)
    assert recipe.warmup_steps - 1 <= peak <= recipe.warmup_steps
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == 0.0 < rates[0]


@given(ids=st.lists(st.integers(2, 39)), context=st.integers(2, 9))
def test_each_token_is_predicted_once(ids: list[int], context: int) -> None:
    windows = measure.split_windows(ids, context, BOS)
    assert [token for window in windows for token in window[1:]] == ids
    assert all(window[0] == BOS and 1 < len(window) <= context for window in windows)


def test_measure_of_a_uniform_model_is_the_logarithm_of_its_vocabulary(tmp_path: Path) -> None:
    model = trainer(SMALL, tmp_path / "none").model  # type: ignore[attr-defined]
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    tally = measure.measure(model, [[BOS, 5, 6, 7], [BOS, 8]])
    assert (tally.windows, tally.tokens) == (2, 4)
    assert tally.bits == pytest.approx(4 * float(torch.log2(torch.tensor(40.0, dtype=torch.float64))), rel=1e-14)


def test_excluded_folders_and_undecodable_files_are_left_out(tmp_path: Path) -> None:
    for name in ("kept.py", "package/kept.py", "package/test/no.py", "site-packages/no.py", "config-3/no.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
    (tmp_path / "broken.py").write_bytes(b"# \xff\n")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    found = corpus.standard_library(tmp_path)
    files = {source.name: source.text for source in (*found.train, *found.heldout)}
    assert set(files) == {"kept.py", "package/kept.py", "latin.py"}
    assert files["latin.py"].endswith("é\n")


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), unique=True))
def test_a_file_is_held_out_by_its_name_alone(names: list[str]) -> None:
    files = tuple(corpus.SourceFile(name, "x" * 30_000) for name in names)
    text, taken = corpus.heldout_text(corpus.Corpus(train=(), heldout=files))
    assert len(text) == 30_000 * len(taken) <= corpus.HELDOUT_BYTES
    assert len(taken) == min(len(names), corpus.HELDOUT_BYTES // 30_000)
    assert [file.held_out for file in files] == [corpus.SourceFile(name, "").held_out for name in names]
