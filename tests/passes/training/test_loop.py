"""Training: what it reaches, that a resumed run is the uninterrupted one bit for bit, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from planish.ir import GroupedInt, InputError, Interpreter, Levels, Module, dense_param
from planish.ir.ops import Linear, QuantizeActivation, QuantizedLinear
from planish.passes.derive.plan import Inputs
from planish.passes.derive.programs import derive
from planish.passes.training import Network, train_module
from planish.passes.training.losses import divergence, next_token_loss
from planish.testing.tiny_decoder import tiny_decoder
from planish.testing.training import WIDE, batches, linears, options, same, stretched


@pytest.mark.parametrize("bits", ["sign", "ternary", "stretched", 2, 3, 4])
def test_the_loss_falls(bits: Any) -> None:
    module = tiny_decoder(**WIDE)
    encodings = linears(module, lambda n: GroupedInt(bits, n) if isinstance(bits, int) else Levels(bits, n))
    losses: list[float] = []
    train_module(
        module,
        itertools.repeat(next(batches())),
        encodings,
        options(steps=25, clip=1.0),
        progress=lambda step, steps, loss: losses.append(loss),
    )
    assert len(losses) == 25
    assert losses[-1] < losses[0] / 2


def test_two_bits_trained_beat_two_bits_rounded() -> None:
    """A random decoder is its own teacher: how far the weights' grid takes it away is what training makes smaller."""
    module = tiny_decoder(**WIDE)
    encodings = stretched(module)
    chosen = options(steps=30, distillation=1.0, frozen=("norm", "embedding"))
    trained = train_module(module, batches(1), encodings, chosen)
    rounded = Network(module, encodings).deployed()
    probe = next(batches(2, padded=False))
    exact, plain, after = (Interpreter(m).run("forward", probe).outputs for m in (module, rounded, trained))
    assert float(divergence(after, exact, probe, 1.0)) < 0.5 * float(divergence(plain, exact, probe, 1.0))
    assert all(trained.params[n].encoding == e for n, e in encodings.items())


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_has_two_parts(weight: float) -> None:
    """The first step's, before any update; the teacher is the model as it came unless another is given."""
    module, other, batch = tiny_decoder(**WIDE), tiny_decoder(**WIDE, seed=1), next(batches())
    encodings = stretched(module)
    student = Network(module, encodings)(batch)
    for teacher in (None, other) if weight else (None,):
        losses: list[float] = []
        train_module(
            module,
            [batch],
            encodings,
            options(steps=1, distillation=weight, temperature=2.0),
            teacher=teacher,
            progress=lambda step, steps, loss, losses=losses: losses.append(loss),  # type: ignore[misc]
        )
        apart = divergence(student, Network(teacher or module)(batch), batch, 2.0)
        expected = (1 - weight) * float(next_token_loss(student, batch).detach()) + weight * float(apart.detach())
        # One product and one sum in float32.
        assert abs(losses[0] - expected) <= 4 * 2.0**-24 * expected


@pytest.mark.parametrize("bits", [8, 4])
def test_integer_activations_are_in_the_training_and_in_the_result(bits: int) -> None:
    module = derive(tiny_decoder(**WIDE), Inputs())
    encodings = stretched(module)
    trained = train_module(module, batches(), encodings, options(activations=f"int{bits}"))
    for name, function in trained.functions.items():
        products = [n for n in function.nodes if isinstance(n.op, QuantizedLinear)]
        codes = [n.op.bits for n in function.nodes if isinstance(n.op, QuantizeActivation)]
        assert len(products) == len(encodings) and set(codes) == {bits}, name
        assert sum(isinstance(n.op, Linear) for n in function.nodes) == 1
    assert not same(trained, train_module(module, batches(), encodings, options()))


def test_a_step_is_adam_on_the_gradient() -> None:
    """With nothing quantised, against torch's own optimiser and transformers' schedule on the interpreter."""
    module = tiny_decoder(**WIDE)
    leaves = {n: p.value().clone().requires_grad_() for n, p in module.params.items() if n != "inv_freq"}
    optimiser = torch.optim.AdamW(leaves.values(), lr=1e-3, weight_decay=0.0, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimiser, 2, 6)
    peer = Network(module)
    for batch in itertools.islice(batches(padded=False), 6):
        with torch.no_grad():
            for name, leaf in leaves.items():
                peer.trained()[f"weight:{name}"].copy_(leaf)
        peer.zero_grad()
        next_token_loss(peer(batch), batch).backward()
        for name, leaf in leaves.items():
            leaf.grad = peer.trained()[f"weight:{name}"].grad
        torch.nn.utils.clip_grad_norm_(leaves.values(), 0.5)
        optimiser.step()
        schedule.step()
    trained = train_module(module, batches(padded=False), {}, options(learning_rate=1e-3, warmup=2, clip=0.5))
    for name, leaf in leaves.items():
        # Six updates of at most about the learning rate each; the two schedules may differ in their last bit.
        difference = (trained.params[name].value() - leaf.detach()).abs().max()
        assert float(difference) <= 6 * 2.0**-20 * (1e-3 + float(leaf.detach().abs().max())), name


def exploding(step: int) -> Callable[[dict[str, torch.Tensor], Any], torch.Tensor]:
    """A loss that is NaN from that step on."""
    count = itertools.count(1)
    return lambda outputs, batch: outputs["logits"].mean() * (torch.nan if next(count) >= step else 1.0)


def steep(outputs: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
    """Zero, with an infinite gradient."""
    return (outputs["logits"] * 0).abs().sum().sqrt()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"loss": exploding(3)}, "the loss is nan in step 3 of 6; lower the learning rate"),
        ({"loss": steep}, "the gradient is not finite in step 1 of 6"),
        ({"loss": lambda outputs, batch: outputs["logits"]}, "the loss must return a scalar tensor that depends"),
        ({"loss": lambda outputs, batch: 1.0}, "the loss must return a scalar tensor that depends"),
        ({"loss": lambda outputs, batch: torch.ones(())}, "the loss must return a scalar tensor that depends"),
        ({"data": itertools.islice(batches(), 4)}, "the data ended after 4 batches, but 6 steps need as many"),
        ({"data": [{**next(batches()), "labels": torch.zeros(1)}]}, "a batch holds labels besides the model's inputs"),
        (
            {"data": [(*next(batches()).values(), torch.zeros(1))]},
            "a batch holds 1 more tensors besides the model's inputs",
        ),
        ({"data": [{**next(batches()), "attention_mask": torch.zeros(4, 9, dtype=torch.bool)}]}, "nothing to predict"),
        ({"teacher": tiny_decoder()}, "a teacher is given, but the option 'distillation' is 0"),
        (
            {"teacher": tiny_decoder(vocabulary=12), "options": options(distillation=0.5)},
            r"the teacher's logits are \[4, 9, 12\], the model's \[4, 9, 11\]",
        ),
        ({"options": options(frozen=("",))}, "no parameter is left to train"),
        (
            {"encodings": {"third": GroupedInt(4, 16)}, "options": options(activations="int8")},
            "'third' cannot be trained for .*: the model has no such parameter",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], sentence: str) -> None:
    given = {"module": tiny_decoder(), "data": batches(), "encodings": {}, "options": options(), **changes}
    with pytest.raises(InputError, match=sentence):
        train_module(**given)


def test_another_thread_trains_as_well() -> None:
    """Where no signal handler may be set."""
    from concurrent.futures import ThreadPoolExecutor

    module = tiny_decoder()
    with ThreadPoolExecutor(1) as pool:
        trained = pool.submit(train_module, module, batches(), {}, options(steps=1)).result()
    assert not same(trained, module)


def test_a_teacher_that_reads_other_inputs_is_refused() -> None:
    from planish.ir import Builder, TensorType

    b = Builder("forward")
    other = Module({}, {"w": dense_param("w", torch.ones(2, 2))})
    x = b.input("x", TensorType(torch.float32, (2, 2)))
    other = other.with_function(b.finish([b.emit(Linear(), x, other.param_ref("w"), None)], ["y"]))
    with pytest.raises(InputError, match="the teacher takes x, but the model takes input_ids, attention_mask"):
        train_module(tiny_decoder(), batches(), {}, options(distillation=0.5), teacher=other)
