"""`planish.train`: any traced model with any loss, and the bundled language model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
import torch
import torch.nn.functional as F

import planish
from planish.ir import Dense, Encoding, GroupedInt, InputError, Interpreter, Levels
from planish.model import Model
from planish.passes.roles import roles
from planish.passes.training import Network
from planish.testing.training import one_thread
from planish.training import TrainingOptions

BUNDLED = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama"


@pytest.fixture(autouse=True)
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield


class Classifier(torch.nn.Module):
    """A convolution with its norm, and a linear map: [N, 1, 6, 6] -> [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8 * 16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        head: torch.Tensor = self.head(F.relu(self.norm(self.conv(image))).flatten(1))
        return head


def images(seed: int) -> dict[str, torch.Tensor]:
    """Sixteen noisy images with a bright row, column or diagonal, and which it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (16,), generator=generator)
    image = 0.3 * torch.randn(16, 1, 6, 6, generator=generator)
    at = torch.arange(6)
    for n, label in enumerate(labels.tolist()):
        rows, columns = ((torch.full((6,), 2), at), (at, torch.full((6,), 3)), (at, at))[label]
        image[n, 0, rows, columns] += 1
    return {"image": image, "label": labels}


def classified(outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(next(iter(outputs.values())), batch["label"])


def test_any_traced_module_trains_with_its_own_loss() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = Classifier().eval()
    model = planish.trace(source, (torch.zeros(16, 1, 6, 6),))
    encodings: dict[str, Encoding] = {"conv.weight": GroupedInt(3, 3), "head.weight": Levels("stretched", 128)}
    losses: list[float] = []
    trained = planish.train(
        model,
        (images(seed) for seed in itertools.count()),
        encodings=encodings,
        options=TrainingOptions(steps=40, learning_rate=2e-2, warmup=4),
        loss=classified,
        progress=lambda step, steps, loss: losses.append(loss),
    )
    assert isinstance(trained, Model) and {n: trained.module.params[n].encoding for n in encodings} == encodings
    # Statistics are tables, and the model itself stays as it was.
    assert torch.equal(trained.module.params["norm.running_var"].value(), source.norm.running_var)
    assert torch.equal(model.module.params["conv.weight"].value(), source.conv.weight)
    # Forty batches are seen once each; a guess costs log 3 nats.
    probe = images(10_000)
    result = Interpreter(trained.module).run("forward", [probe["image"]]).outputs
    plain = Interpreter(Network(model.module, encodings).deployed()).run("forward", [probe["image"]]).outputs
    assert float(classified(result, probe)) < float(classified(plain, probe)) / 2


def test_what_does_not_fit_is_refused() -> None:
    model = planish.trace(Classifier().eval(), (torch.zeros(16, 1, 6, 6),))
    chosen = TrainingOptions(steps=1)
    with pytest.raises(InputError, match="give a loss of your own"):
        planish.train(model, [{"image": torch.zeros(16, 1, 6, 6)}], encodings={}, options=chosen)
    with pytest.raises(InputError, match=r"'norm\.running_var' cannot be trained for f16: it is a constant table"):
        planish.train(
            model, [images(0)], encodings={"norm.running_var": Dense(torch.float16)}, options=chosen, loss=classified
        )
    with pytest.raises(InputError, match="training has no option 'step'; did you mean 'steps'"):
        TrainingOptions(step=1)


def heldout(rows: int, length: int, first: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the held-out text, each run after the token that begins a sequence."""
    tokenizer = tokenizers.Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    ids = tokenizer.encode((BUNDLED / "heldout.txt").read_text(encoding="utf-8"), add_special_tokens=False).ids
    runs = (torch.tensor(ids[at : at + length - 1]) for at in range(0, len(ids) - length, length - 1))
    while batch := list(itertools.islice(runs, rows)):
        tokens = F.pad(torch.stack(batch), (1, 0), value=first)
        yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens, dtype=torch.bool)}


@pytest.mark.full
def test_the_bundled_model_recovers_from_two_bits(tmp_path: Path) -> None:
    """On text that it is then measured on: the same 256 tokens again and again, which is about fitting, not learning."""
    model = planish.trace(BUNDLED, check=False)
    module = model.module
    encodings = {
        name: Levels("stretched", int(module.params[name].type.shape[-1]))
        for name, role in roles(module).items()
        if role == {"linear"}
    }
    losses: list[float] = []
    first = module.metadata["bos_token_id"]
    assert isinstance(first, int)
    batch = next(heldout(2, 128, first))
    trained = planish.train(
        model,
        itertools.repeat(batch),
        encodings=encodings,
        options=TrainingOptions(steps=12, learning_rate=1e-3, clip=1.0),
        checkpoint=tmp_path / "run.ckpt",
        progress=lambda step, steps, loss: losses.append(loss),
    )
    assert len(losses) == 12 and losses[-1] < losses[0] / 2
    kept = {n: p.encoding for n, p in trained.module.params.items() if n not in encodings}
    assert kept == {n: p.encoding for n, p in module.params.items() if n not in encodings}
    assert trained.nbytes < model.nbytes / 4
    # The tied table is one parameter, and what was trained is what the interpreter runs.
    after = Interpreter(trained.module).run("forward", batch).outputs["logits"]
    nats = F.cross_entropy(after[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    assert float(nats) < losses[0] / 2
