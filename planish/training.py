"""Quantisation-aware training of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from planish.ir import Encoding, verify
from planish.model import Model
from planish.passes.training import Batch, Loss, TrainingOptions, train_module

__all__ = ["TrainingOptions", "train"]


def train(
    model: Model,
    data: Iterable[Batch],
    *,
    encodings: Mapping[str, Encoding],
    options: TrainingOptions,
    loss: Loss | None = None,
    teacher: Model | None = None,
    checkpoint: Path | str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Model:
    """Train a model while the named weights are seen as their encodings will hold them.

    The function `forward` is trained by AdamW without weight decay; other functions share its weights. Masters and learned
    scales are float32. Parameters that `encodings` does not name are trained as well and keep their encoding, except
    constant tables and weights that are quantised already.

    Args:
        model: what `trace` or `compress` returned; it stays as it is.
        data: batches, one for each step: the inputs of `forward` as a mapping by name or a sequence in order; further
            entries are for the loss. To go on from a checkpoint, it must give the same batches again.
        encodings: by parameter name, `Levels`, `GroupedInt` without zero points, or `Dense`.
        options: see `TrainingOptions`.
        loss: takes the outputs by name and the batch to a scalar tensor. By default the cross entropy of the next token in
            `input_ids`, padding left out.
        teacher: whose logits to learn with the weight `options.distillation`; the model as it came when not given.
        checkpoint: a file. If it is there, the run goes on from it; it is kept up to date every `options.checkpoint_every`
            steps, at the end, and when the run is interrupted.
        progress: called after each step with the number of finished steps, of all steps, and the loss.

    Returns:
        The model whose weights decode, bit for bit, to what the last forward would have seen.

    Raises:
        InputError: for weights or encodings that cannot be trained, data that end too early or do not fit, a loss or a
            gradient that is not finite, or a checkpoint of another run.
        IRError: for an encoding that cannot hold its parameter, or a batch of other types than the model takes.
    """
    trained = train_module(
        model.module,
        data,
        encodings,
        options,
        loss=loss,
        teacher=None if teacher is None else teacher.module,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
    )
    verify(trained)
    return replace(model, module=trained)
