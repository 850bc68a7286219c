"""Rotations learned for a quantisation to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from planish.ir import Module
from planish.model import Model
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Pass, PassResult
from planish.passes.training import Batch, Loss, RotationOptions, find_rotations
from planish.passes.training.rotations import Learned

__all__ = ["RotationOptions", "learn_rotations"]


class _Rotate(Pass):
    """Multiplies learned rotations into parameters. No recipe can name it: the matrices belong to one model."""

    name: ClassVar[str] = "learned-rotations"
    _learned: Learned = PrivateAttr()
    _options: RotationOptions = PrivateAttr()

    @classmethod
    def of(cls, learned: Learned, options: RotationOptions) -> _Rotate:
        made = cls()
        made._learned, made._options = learned, options
        return made

    def options(self) -> dict[str, Any]:
        """Those of the run, for the report."""
        return self._options.model_dump(mode="json")

    def apply(self, module: Module, context: Context) -> PassResult:
        return self._learned.applied(module)


def learn_rotations(
    model: Model,
    data: Iterable[Batch],
    *,
    passes: Sequence[Pass],
    options: RotationOptions,
    loss: Loss | None = None,
    checkpoint: Path | str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    check: bool = True,
) -> Model:
    """Rotate the spaces of a model so that it loses as little as can be by the quantisation that follows.

    The spaces are those that `rotation-fusion` would rotate, so fold the gains of norms first; an online Hadamard transform
    that is to be there must be there already. Matrices begin as that pass draws them and go on by Cayley SGD in float64, on
    the loss of `forward` as `passes` will make it. They end at the nearest orthogonal matrices and are multiplied into the
    parameters, in float64, rounded once.

    In memory are the weights once, as they came (twice with distillation, where the model learns from itself), and with
    `options.recompute` what is alive between about sqrt(n) parts of a function of n operations, and what one part computes:
    weights are rotated and rounded anew in each.

    Args:
        model: what `trace` or `compress` returned; it stays as it is.
        data: batches, one for each step: the inputs of `forward` as a mapping by name or a sequence in order; further
            entries are for the loss. To go on from a checkpoint, it must give the same batches again.
        passes: `quantize`, `quantize-activations` and `quantize-cache` as they will be applied to the result. Weights that
            GPTQ will round are not rounded here (SpinQuant's finding); with `rtn` and `mse` they are.
        options: see `RotationOptions`.
        loss: takes the outputs by name and the batch to a scalar tensor. By default the cross entropy of the next token in
            `input_ids`, padding left out.
        checkpoint: a file. If it is there, the run goes on from it; it is kept up to date every `options.checkpoint_every`
            steps, at the end, and when the run is interrupted.
        progress: called after each step with the number of finished steps, of all steps, and the loss.
        check: hold the rotated model to the contract of `rotation-fusion` on probe inputs.

    Returns:
        The model, its report saying what was rotated and what was not, and why.

    Raises:
        InputError: for a model with quantised weights or nothing to rotate, passes that round nothing or are others, data
            that end too early or do not fit, a loss or a gradient that is not finite, or a checkpoint of another run.
        PassError: when the check fails.
    """
    learned = find_rotations(
        model.module,
        data,
        passes,
        options,
        loss=loss,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
    )
    fold = _Rotate.of(learned, options)
    module, report = PassManager([fold], check=check, reproduce=False).run(model.module)
    return model.after(module, report)
