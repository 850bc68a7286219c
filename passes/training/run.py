"""The state of a training run and its steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from planish.ir.errors import InputError
from planish.ir.params import storage_digest
from planish.passes.training.checkpoint import Saved, load_checkpoint, save_checkpoint
from planish.passes.training.goal import Goal
from planish.passes.training.options import RunOptions
from planish.passes.training.runnable import Batch, Runnable
from planish.passes.training.uninterrupted import uninterrupted

Progress: TypeAlias = Callable[[int, int, float], None]
"""(finished steps, steps, the loss of the last one)."""


class Run:
    """What is trained, its optimiser, random state and place in the data, as they are after `step` steps."""

    def __init__(self, network: Runnable, goal: Goal, options: RunOptions, optimiser: torch.optim.Optimizer) -> None:
        self._goal, self._options, self._optimiser = goal, options, optimiser
        self._trained = network.trained()
        self.step, self._seen, self._random = 0, "", torch.get_rng_state()

    def go_on(self, batches: Iterator[Batch], progress: Progress | None, save: Callable[[], None]) -> None:
        """Train up to the last step; `save` is called now and then, at the end, and on an interrupt."""
        steps = self._options.steps
        try:
            while self.step < steps:
                loss = self._one_step(self._next(batches, self.step))
                if self.step % self._options.checkpoint_every == 0 or self.step == steps:
                    save()
                if progress is not None:
                    progress(self.step, steps, loss)
        except KeyboardInterrupt:
            save()
            raise

    def _one_step(self, batch: Batch) -> float:
        options, step = self._options, self.step + 1
        self._optimiser.zero_grad()
        value = self._goal(batch, step)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), options.clip or float("inf"))
        if not bool(torch.isfinite(norm)):
            raise InputError(
                f"the gradient is not finite in step {step} of {options.steps}; lower the learning rate or look at that batch"
            )
        seen = _after(self._seen, batch)
        for group in self._optimiser.param_groups:
            group["lr"] = options.learning_rate_at(self.step)
        with uninterrupted():
            self._optimiser.step()
            self.step, self._seen, self._random = step, seen, torch.get_rng_state()
        return float(value.detach())

    def _next(self, batches: Iterator[Batch], before: int) -> Batch:
        try:
            return next(batches)
        except StopIteration:
            raise InputError(
                f"the data ended after {before} batches, but {self._options.steps} steps need as many; give more, or ask for "
                f"fewer steps"
            ) from None

    def saved(self) -> Saved:
        """What a checkpoint holds."""
        tensors: dict[str, torch.Tensor] = {"random": self._random}
        for name, parameter in self._trained.items():
            tensors[f"value {name}"] = parameter
            tensors |= {f"{key} {name}": value for key, value in self._optimiser.state.get(parameter, {}).items()}
        return Saved(self.step, self._seen, tensors)

    def resume(self, saved: Saved, data: Iterable[Batch], path: Path) -> Iterator[Batch]:
        """Take over a checkpoint; returns the data after the batches that it was trained on, which must come again."""
        batches, seen = iter(data), ""
        for before in range(saved.step):
            seen = _after(seen, self._next(batches, before))
        if seen != saved.seen:
            raise InputError(
                f"the data give other batches than the checkpoint {path} was trained on; give the same again, or remove it "
                f"to start again"
            )
        tensors = dict(saved.tensors)
        self.step, self._seen, self._random = saved.step, saved.seen, tensors.pop("random")
        for key, tensor in tensors.items():
            kind, _, name = key.partition(" ")
            if kind == "value":
                with torch.no_grad():
                    self._trained[name].copy_(tensor)
            else:
                # A parameter that got no gradient yet has no state.
                self._optimiser.state[self._trained[name]][kind] = tensor
        torch.set_rng_state(self._random)
        return batches


def carry_out(
    make: Callable[[], Run],
    data: Iterable[Batch],
    seed: int,
    made_of: Callable[[], dict[str, str]],
    checkpoint: Path | None,
    progress: Progress | None,
) -> None:
    """A whole run, from where its checkpoint left it, if there is one; see `planish.training.train` for the arguments.

    Args:
        make: the run before its first step, called with torch's generator seeded.
        seed: of the generator, which is as before when the run is over.
        made_of: what decides the result besides the data, see `made_of`; asked for when there is a checkpoint.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = make()
        if checkpoint is None:
            run.go_on(iter(data), progress, lambda: None)
            return
        parts = made_of()
        started = checkpoint.exists()
        batches = run.resume(load_checkpoint(checkpoint, parts), data, checkpoint) if started else iter(data)
        run.go_on(batches, progress, lambda: save_checkpoint(checkpoint, run.saved(), parts))


def made_of(**parts: object) -> dict[str, str]:
    """Digests of what decides the result of a run besides its data, by the words in which a mismatch is reported."""
    return {key: hashlib.sha256(str(part).encode()).hexdigest() for key, part in parts.items()}


def _after(seen: str, batch: Batch) -> str:
    """The digest of the batches so far and one more."""
    named = dict(batch) if isinstance(batch, Mapping) else {str(n): tensor for n, tensor in enumerate(batch)}
    return hashlib.sha256((seen + storage_digest(named)).encode()).hexdigest()
