"""Rotations learned on the network as it will be deployed: descent over orthogonal matrices, weights as they are.

The loss is that of the graph after the quantisation to come: weights are rotated and then rounded, activations are codes,
keys and values are rounded as their caches will hold them, all with straight-through gradients. Without rounding the function
does not depend on its rotations; what is learned is which of all equal networks loses least by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch

from planish.ir.encodings import Dense
from planish.ir.errors import InputError
from planish.ir.module import Module, ParamRef
from planish.ir.structural_hash import content_hash
from planish.passes.pass_base import Pass, PassResult
from planish.passes.rotation_fusion import Rotatable, drawn, rotatable, rotated
from planish.passes.training.cayley import CayleySGD, polar
from planish.passes.training.deployment import Deployment, deployment
from planish.passes.training.goal import Goal
from planish.passes.training.losses import Loss
from planish.passes.training.network import Network
from planish.passes.training.options import RotationOptions
from planish.passes.training.run import Progress, Run, carry_out, made_of
from planish.passes.training.runnable import Batch, Runnable

FUNCTION = "forward"


class Rotated(Runnable):
    """A function over rotated weights, each as its encoding will hold it; trained are the rotations.

    A weight is held once, as it came, and rotated and rounded whenever it is read.

    Args:
        deployment: the function, and what is rounded.
        found: which spaces are rotated.
        rotations: the matrices to begin with, float64 [n, n].
        parts, scaled: see `Runnable`.

    Raises:
        InputError: for a weight with NaN or infinity.
    """

    def __init__(
        self,
        deployment: Deployment,
        found: Rotatable,
        rotations: Sequence[torch.Tensor],
        *,
        parts: int = 1,
        scaled: bool = False,
    ) -> None:
        super().__init__(deployment.module, FUNCTION, rows=deployment.rows, parts=parts, scaled=scaled)
        self._held, self._found = deployment.weights, found
        self.rotations = torch.nn.ParameterList([torch.nn.Parameter(r.clone()) for r in rotations])
        self._values: dict[str, torch.Tensor] = {}
        for name in dict.fromkeys(r.name for r in self.function.references() if isinstance(r, ParamRef)):
            value = self.ir.params[name].value()
            if found.of(name):
                if not bool(torch.isfinite(value).all()):
                    raise InputError(f"parameter {name!r} holds NaN or infinity and cannot be rotated; repair it first")
            elif name in self._held:
                value = self._held[name](value)
            self._values[name] = value

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {f"rotation:{number}": rotation for number, rotation in enumerate(self.rotations)}

    def weight(self, name: str) -> torch.Tensor:
        value, numbers = self._values[name], self._found.of(name)
        for number in numbers:
            value = self._found.act(name, value, number, self.rotations[number].to(value.dtype))
        if not numbers or name not in self._held:
            return value
        return self.through(value, self._held[name].encoding, self._held[name])


@dataclass(frozen=True, eq=False)
class Given:
    """A rotation that is known."""

    matrix: torch.Tensor


@dataclass(frozen=True, eq=False)
class Learned:
    """Rotations of some spaces of one module, in their order."""

    found: Rotatable
    rotations: tuple[Given, ...]

    def applied(self, module: Module) -> PassResult:
        """That module with the rotations multiplied into its parameters, as `rotation-fusion` does it with drawn ones."""
        return rotated(module, self.found, self.rotations)


def find_rotations(
    module: Module,
    data: Iterable[Batch],
    passes: Sequence[Pass],
    options: RotationOptions,
    *,
    loss: Loss | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Learn rotations for `forward` of a module; see `planish.rotations.learn_rotations`."""
    _require_dense(module)
    found = rotatable(module, options.spaces)
    if not found.chosen:
        why = f": {found.refusals[0]}" if found.refusals else ""
        raise InputError(f"the model has no space to rotate (option 'spaces' is {options.spaces!r}){why}")
    plan = deployment(module, passes, FUNCTION)
    if not plan.rounds(FUNCTION):
        raise InputError(
            "nothing is rounded by the passes that are given, so no rotation is better than another; give those that will "
            "follow, such as 'quantize-activations'"
        )
    starts = [rotation.matrix for rotation in drawn(found, options.kind, options.seed)]
    parts = _parts(module) if options.recompute else 1
    network = Rotated(plan, found, starts, parts=parts, scaled=options.scaled)
    teacher = Network(module, frozen=("",), function=FUNCTION) if options.distillation else None
    goal = Goal(network, options, loss, teacher)
    carry_out(
        lambda: Run(network, goal, options, CayleySGD(network.rotations, options.learning_rate, options.momentum)),
        data,
        options.seed,
        lambda: made_of(
            weights=content_hash(module, FUNCTION),
            passes=[(step.name, step.options()) for step in passes],
            options=options.model_dump_json(exclude={"checkpoint_every", "recompute"}),
            loss="next token" if loss is None else "its own",
        ),
        checkpoint,
        progress,
    )
    return Learned(found, tuple(Given(polar(rotation.detach())) for rotation in network.rotations))


def _parts(module: Module) -> int:
    """About as many parts as nodes in a part: then what is alive between them and within one is least together."""
    return max(1, isqrt(len(module.functions[FUNCTION].nodes)))


def _require_dense(module: Module) -> None:
    """Raise InputError where rotations come too late, or there is nothing to learn on."""
    if FUNCTION not in module.functions:
        raise InputError(f"the model has no function {FUNCTION!r} to learn on; it has {', '.join(module.functions)}")
    for ref in module.functions[FUNCTION].references():
        if isinstance(ref, ParamRef) and not isinstance(module.params[ref.name].encoding, Dense):
            raise InputError(
                f"parameter {ref.name!r} is stored as {module.params[ref.name].encoding} already; learn rotations before "
                f"weights are quantised"
            )
