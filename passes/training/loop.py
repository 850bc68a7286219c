"""Training with quantised weights: AdamW over float32 masters, one batch a step, from a checkpoint to the deployed module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from planish.ir.encodings import Encoding
from planish.ir.errors import InputError
from planish.ir.module import Module
from planish.ir.params import Computed, Param
from planish.ir.structural_hash import content_hash
from planish.passes.pass_base import Context
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.training.goal import Goal
from planish.passes.training.losses import Loss
from planish.passes.training.network import Network
from planish.passes.training.options import Integers, TrainingOptions
from planish.passes.training.run import Progress, Run, carry_out, made_of
from planish.passes.training.runnable import Batch

FUNCTION = "forward"


def train_module(
    module: Module,
    data: Iterable[Batch],
    encodings: Mapping[str, Encoding],
    options: TrainingOptions,
    *,
    loss: Loss | None = None,
    teacher: Module | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Module:
    """Train `forward` of a module with the named parameters held in `encodings`; see `planish.training.train`."""
    if teacher is not None and options.distillation == 0:
        raise InputError("a teacher is given, but the option 'distillation' is 0; set its weight, or give no teacher")
    program = _with_integers(module, encodings, options.activations) if options.activations else module
    network = Network(program, encodings, frozen=options.frozen, function=FUNCTION)
    if not network.trained():
        raise InputError("no parameter is left to train; look at the option 'frozen'")
    goal = Goal(network, options, loss, _teacher(network, module, teacher, options))
    carry_out(
        lambda: Run(network, goal, options, _optimiser(network)),
        data,
        options.seed,
        lambda: made_of(
            weights=content_hash(module, FUNCTION),
            encodings=sorted((name, repr(encoding)) for name, encoding in encodings.items()),
            options=options.model_dump_json(exclude={"checkpoint_every"}),
            loss="next token" if loss is None else "its own",
            teacher="" if teacher is None else content_hash(teacher, FUNCTION),
        ),
        checkpoint,
        progress,
    )
    return network.deployed()


def _optimiser(network: Network) -> torch.optim.Optimizer:
    """Each step sets its rate."""
    return torch.optim.AdamW(network.trained().values(), lr=0.0, weight_decay=0.0, fused=True)


def _teacher(network: Network, module: Module, teacher: Module | None, options: TrainingOptions) -> Network | None:
    """The network to learn from, with nothing in it to train; without one of its own, the model as it came."""
    if options.distillation == 0:
        return None
    made = Network(teacher or module, frozen=("",), function=FUNCTION)
    if not set(made.inputs) <= set(network.inputs):
        raise InputError(
            f"the teacher takes {', '.join(made.inputs)}, but the model takes {', '.join(network.inputs)}; take a teacher "
            f"that reads the same inputs"
        )
    return made


def _with_integers(module: Module, encodings: Mapping[str, Encoding], activations: Integers) -> Module:
    """The module with its functions as `quantize-activations` makes them for the encodings."""
    unknown = [name for name in encodings if name not in module.params]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} cannot be trained for {encodings[unknown[0]]}: the model has no such parameter"
        )
    encoded = module.with_params([_rounded(module.params[name], encoding) for name, encoding in encodings.items()])
    quantize = QuantizeActivations(bits=int(activations.removeprefix("int")))
    return replace(module, functions=quantize.apply(encoded, Context()).module.functions)


def _rounded(param: Param, encoding: Encoding) -> Param:
    encoding.layout(param.type)
    return replace(param, encoding=encoding, source=Computed(lambda: encoding.encode(param.value())))
