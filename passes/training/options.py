"""The options of a training run."""

from __future__ import annotations

from math import cos, pi
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planish.ir.errors import InputError
from planish.passes.pass_base import nearest


class TrainingOptions(BaseModel):
    """How a network is trained. Raises InputError with one sentence about the first option that does not fit.

    Attributes:
        steps: batches to train on, one a step.
        learning_rate: its peak, for weights and scales alike.
        warmup: steps in which it rises from 0 to the peak; from there it falls to 0 along a cosine.
        clip: the largest Euclidean norm of the whole gradient, which is scaled down to it; None for no limit.
        distillation: weight, from 0 to 1, of the divergence from the teacher's logits; the loss itself has the rest.
        temperature: by which the logits of both are divided for that.
        activations: "int8" applies `quantize-activations` before the training: linear maps whose weights have few levels read
            int8 rows, then and in the result.
        frozen: regular expressions; a parameter whose name holds a match of one is not trained.
        seed: of torch's generator while the run lasts, for data and losses that draw from it.
        checkpoint_every: steps between two checkpoints.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    steps: int = Field(ge=1)
    learning_rate: float = Field(default=2e-5, gt=0, allow_inf_nan=False)
    warmup: int = Field(default=0, ge=0)
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    distillation: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    activations: Literal["int8"] | None = None
    frozen: tuple[str, ...] = ()
    seed: int = 0
    checkpoint_every: int = Field(default=100, ge=1)

    def __init__(self, **given: Any) -> None:
        for key in given:
            if key not in type(self).model_fields:
                raise InputError(f"training has no option {key!r}; {nearest(key, type(self).model_fields)}")
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            what = (
                f"option {key!r} of training is {first['input']!r}"
                if key in given
                else "the options of training do not fit"
            )
            raise InputError(f"{what}: {first['msg']}{'' if key in given or not key else f' ({key})'}") from error

    @model_validator(mode="after")
    def _fit(self) -> TrainingOptions:
        if self.warmup >= self.steps:
            raise ValueError(f"a warmup of {self.warmup} steps leaves none of {self.steps} to train; shorten it")
        return self

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0 ... `steps` - 1: a linear rise from 0, then half a cosine down to 0."""
        if step < self.warmup:
            return self.learning_rate * step / self.warmup
        return self.learning_rate * 0.5 * (1 + cos(pi * (step - self.warmup) / (self.steps - self.warmup)))
