"""The options of a run of training, of weights or of rotations."""

from __future__ import annotations

from math import cos, pi
from typing import Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planish.ir.errors import InputError
from planish.passes.pass_base import nearest
from planish.passes.rotation_fusion import Kind, Which

Integers: TypeAlias = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8"]
"""What rows of activations may be quantised to."""


class RunOptions(BaseModel):
    """What every run has. Raises InputError with one sentence about the first option that does not fit.

    Attributes:
        steps: batches to train on, one a step.
        learning_rate: its peak.
        warmup: steps in which it rises from 0 to the peak; from there it falls to 0 along a cosine.
        clip: the largest Euclidean norm of the whole gradient, which is scaled down to it; None for no limit.
        distillation: weight, from 0 to 1, of the divergence from the teacher's logits; the loss itself has the rest.
        temperature: by which the logits of both are divided for that.
        seed: of torch's generator while the run lasts, for data and losses that draw from it.
        checkpoint_every: steps between two checkpoints.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    of: ClassVar[str]
    """What the options are of, for messages."""
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    warmup: int = Field(default=0, ge=0)
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    distillation: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: int = 0
    checkpoint_every: int = Field(default=100, ge=1)

    def __init__(self, **given: Any) -> None:
        for key in given:
            if key not in type(self).model_fields:
                raise InputError(f"{self.of} has no option {key!r}; {nearest(key, type(self).model_fields)}")
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            what = (
                f"option {key!r} of {self.of} is {first['input']!r}"
                if key in given
                else f"the options of {self.of} do not fit"
            )
            raise InputError(f"{what}: {first['msg']}{'' if key in given or not key else f' ({key})'}") from error

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"a warmup of {self.warmup} steps leaves none of {self.steps} to train; shorten it")
        return self

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0 ... `steps` - 1: a linear rise from 0, then half a cosine down to 0."""
        if step < self.warmup:
            return self.learning_rate * step / self.warmup
        return self.learning_rate * 0.5 * (1 + cos(pi * (step - self.warmup) / (self.steps - self.warmup)))


class TrainingOptions(RunOptions):
    """How a network is trained. What is not listed here is in `RunOptions`, and so are errors.

    Attributes:
        learning_rate: its peak, for weights and scales alike.
        activations: "int8" applies `quantize-activations` before the training: linear maps whose weights have few levels read
            int8 rows, then and in the result. So do "int2" to "int7", of codes of so many bits.
        frozen: regular expressions; a parameter whose name holds a match of one is not trained.
    """

    of: ClassVar[str] = "training"
    learning_rate: float = Field(default=2e-5, gt=0, allow_inf_nan=False)
    activations: Integers | None = None
    frozen: tuple[str, ...] = ()


class RotationOptions(RunOptions):
    """How rotations are learned. What is not listed here is in `RunOptions`, and so are errors.

    Attributes:
        learning_rate: its peak; a step that would turn further than Cayley's transform is good for is shortened.
        momentum: of the steps, from 0 to below 1.
        kind: of the rotations to begin with, as `rotation-fusion` draws them from `seed`.
        spaces: which are rotated, as for `rotation-fusion`.
        scaled: whether scales have a gradient too; without, as in SpinQuant, rounding passes gradients straight and no more.
        recompute: keep only a few of the values of a forward, and compute the others again where the backward pass needs
            them. The result has the same bits.
    """

    of: ClassVar[str] = "learning rotations"
    learning_rate: float = Field(default=1.5, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    kind: Kind = "hadamard"
    spaces: Which = "all"
    scaled: bool = True
    recompute: bool = True
