"""The number that a step of training makes smaller: a loss, and the divergence from a teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from planish.ir.errors import InputError
from planish.passes.training.losses import Loss, divergence, next_token_loss
from planish.passes.training.options import RunOptions
from planish.passes.training.runnable import Batch, Runnable


class Goal:
    """Takes batches to scalars.

    Args:
        network: what is trained.
        options: weights of the parts.
        loss: None for the next token's.
        teacher: a network that reads the same inputs, or None.
    """

    def __init__(self, network: Runnable, options: RunOptions, loss: Loss | None, teacher: Runnable | None) -> None:
        self._network, self._options, self._loss, self._teacher = network, options, loss, teacher

    def __call__(self, batch: Batch, step: int) -> torch.Tensor:
        """The loss of a batch; raises InputError unless it is a finite scalar that depends on the weights."""
        inputs, weight = self._network.inputs_of(batch), self._options.distillation
        if self._loss is None and len(batch) > len(inputs):
            extra = (
                list(batch)[len(inputs) :] if not isinstance(batch, Mapping) else sorted(batch.keys() - inputs.keys())
            )
            what = ", ".join(extra) if isinstance(batch, Mapping) else f"{len(extra)} more tensors"  # type: ignore[arg-type]
            raise InputError(
                f"a batch holds {what} besides the model's inputs, which only a loss of your own would read"
            )
        outputs = self._network(inputs)
        parts = []
        if weight < 1:
            task = next_token_loss(outputs, inputs) if self._loss is None else self._loss(outputs, batch)
            if not isinstance(task, torch.Tensor) or task.dim() or not task.requires_grad:
                raise InputError("the loss must return a scalar tensor that depends on the outputs of the model")
            parts.append((1 - weight) * task)
        if self._teacher is not None:
            with torch.no_grad():
                wanted = self._teacher(self._teacher.inputs_of(inputs))
            parts.append(weight * divergence(outputs, wanted, inputs, self._options.temperature))
        value = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if not bool(torch.isfinite(value)):
            raise InputError(
                f"the loss is {float(value.detach())} in step {step} of {self._options.steps}; lower the learning rate, "
                f"set the option 'clip', or look at that batch"
            )
        return value
