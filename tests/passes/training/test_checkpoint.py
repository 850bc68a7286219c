"""Runs that are cut: what goes on is the uninterrupted run bit for bit, and a checkpoint of another run is refused."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from planish.ir import InputError, Levels
from planish.passes.training import Network, train_module
from planish.passes.training.losses import next_token_loss
from planish.passes.training.uninterrupted import uninterrupted
from planish.testing.tiny_decoder import tiny_decoder
from planish.testing.training import WIDE, batches, options, same, stretched


def dying(count: int, error: BaseException, seed: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """So many batches, then an error."""
    yield from itertools.islice(batches(seed), count)
    raise error


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [1, 2, 5, 6])
def test_a_killed_run_that_goes_on_is_the_uninterrupted_one(at: int, tmp_path: Path) -> None:
    module, path = tiny_decoder(**WIDE), tmp_path / "new" / "run.ckpt"
    encodings, teacher = stretched(module), tiny_decoder(**WIDE, seed=1)
    settings: dict[str, Any] = {"options": options(distillation=0.3, clip=1.0), "teacher": teacher}
    whole = train_module(module, batches(), encodings, **settings)
    if at < 6:
        with pytest.raises(Killed):
            train_module(module, dying(at, Killed()), encodings, checkpoint=path, **settings)
        assert path.exists() == (at >= 2)
    else:
        assert same(train_module(module, batches(), encodings, checkpoint=path, **settings), whole)
    steps: list[int] = []
    resumed = train_module(
        module, batches(), encodings, checkpoint=path, progress=lambda step, *_: steps.append(step), **settings
    )
    assert steps == list(range(at // 2 * 2 + 1, 7))
    assert same(resumed, whole) and not same(resumed, Network(module, encodings).deployed())
    assert [p.name for p in path.parent.iterdir()] == ["run.ckpt"]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    """A loss that draws; the caller's generator is left alone, and the seed is what decides."""
    module, path = tiny_decoder(), tmp_path / "run.ckpt"

    def noisy(outputs: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        return next_token_loss({"logits": outputs["logits"] + torch.randn(())}, batch) * (1 + torch.rand(()))

    before = torch.get_rng_state()
    whole = train_module(module, batches(), {}, options(), loss=noisy)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    with pytest.raises(Killed):
        train_module(module, dying(5, Killed()), {}, options(), loss=noisy, checkpoint=path)
    assert same(train_module(module, batches(), {}, options(), loss=noisy, checkpoint=path), whole)
    assert not same(train_module(module, batches(), {}, options(seed=1), loss=noisy), whole)


@pytest.mark.parametrize("where", ["data", "progress", "update"])
def test_an_interrupt_leaves_a_checkpoint(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, path = tiny_decoder(), tmp_path / "run.ckpt"
    whole = train_module(module, batches(), {}, options())
    data: Any = dying(3, KeyboardInterrupt()) if where == "data" else batches()
    update, count = torch.optim.AdamW.step, itertools.count(1)

    def progress(step: int, steps: int, loss: float) -> None:
        if where == "progress" and step == 3:
            raise KeyboardInterrupt

    def interrupted(self: Any, *arguments: Any) -> Any:
        if where == "update" and next(count) == 3:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_module(module, data, {}, options(checkpoint_every=100), checkpoint=path, progress=progress)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 3
    assert same(train_module(module, batches(), {}, options(), checkpoint=path), whole)


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"options": options(learning_rate=2e-2)}, "belongs to a run with other options; choose another file"),
        ({"encodings": {"0.q": Levels("sign", 16)}}, "belongs to a run with other encodings"),
        ({"module": tiny_decoder(seed=1)}, "belongs to a run with other weights"),
        ({"loss": lambda outputs, batch: outputs["logits"].mean()}, "belongs to a run with other loss"),
        ({"data": batches(5)}, "the data give other batches than the checkpoint .* was trained on"),
        ({"data": itertools.islice(batches(), 1)}, "the data ended after 1 batches, but 6 steps need as many"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    given = {
        "module": tiny_decoder(),
        "data": dying(4, Killed()),
        "encodings": {},
        "options": options(),
        "checkpoint": path,
    }
    with pytest.raises(Killed):
        train_module(**given)  # type: ignore[arg-type]
    content = path.read_bytes()
    with pytest.raises(InputError, match=sentence):
        train_module(**{**given, "data": batches(), **changes})  # type: ignore[arg-type]
    assert path.read_bytes() == content
    # How often it is written decides nothing.
    train_module(**{**given, "data": batches(), "options": options(checkpoint_every=50)})  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    if content is None:
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    sentence = "is no checkpoint of a training run" if content is None else "the checkpoint .* cannot be read"
    with pytest.raises(InputError, match=sentence):
        train_module(tiny_decoder(), batches(), {}, options(), checkpoint=path)


def test_a_checkpoint_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the checkpoint .* cannot be written"):
        train_module(tiny_decoder(), batches(), {}, options(), checkpoint=tmp_path / "file" / "run.ckpt")
