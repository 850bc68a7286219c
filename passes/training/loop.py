"""Training with quantised weights: AdamW over float32 masters, one batch a step, from a checkpoint to the deployed module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from planish.ir.encodings import Encoding
from planish.ir.errors import InputError
from planish.ir.module import Module
from planish.ir.params import Computed, Param
from planish.ir.structural_hash import content_hash
from planish.passes.pass_base import Context
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.training.checkpoint import load_checkpoint, save_checkpoint
from planish.passes.training.goal import Goal
from planish.passes.training.losses import Loss
from planish.passes.training.network import Batch, Network
from planish.passes.training.options import TrainingOptions
from planish.passes.training.run import Progress, Run

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
    program = _with_int8(module, encodings) if options.activations else module
    network = Network(program, encodings, frozen=options.frozen, function=FUNCTION)
    if not network.trained():
        raise InputError("no parameter is left to train; look at the option 'frozen'")
    goal = Goal(network, options, loss, _teacher(network, module, teacher, options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        run = Run(network, goal, options)
        if checkpoint is None:
            run.go_on(iter(data), progress, lambda: None)
        else:
            made_of = _made_of(module, encodings, options, loss, teacher)
            batches = (
                run.resume(load_checkpoint(checkpoint, made_of), data, checkpoint)
                if checkpoint.exists()
                else iter(data)
            )
            run.go_on(batches, progress, lambda: save_checkpoint(checkpoint, run.saved(), made_of))
    return network.deployed()


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


def _with_int8(module: Module, encodings: Mapping[str, Encoding]) -> Module:
    """The module with its functions as `quantize-activations` makes them for the encodings."""
    unknown = [name for name in encodings if name not in module.params]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} cannot be trained for {encodings[unknown[0]]}: the model has no such parameter"
        )
    encoded = module.with_params([_rounded(module.params[name], encoding) for name, encoding in encodings.items()])
    return replace(module, functions=QuantizeActivations().apply(encoded, Context()).module.functions)


def _rounded(param: Param, encoding: Encoding) -> Param:
    encoding.layout(param.type)
    return replace(param, encoding=encoding, source=Computed(lambda: encoding.encode(param.value())))


def _made_of(
    module: Module,
    encodings: Mapping[str, Encoding],
    options: TrainingOptions,
    loss: Loss | None,
    teacher: Module | None,
) -> dict[str, str]:
    """What decides the result of a run besides its data, by the words in which a mismatch is reported."""
    texts: dict[str, Any] = {
        "weights": content_hash(module, FUNCTION),
        "encodings": sorted((name, repr(encoding)) for name, encoding in encodings.items()),
        "options": options.model_dump_json(exclude={"checkpoint_every"}),
        "loss": "next token" if loss is None else "its own",
        "teacher": "" if teacher is None else content_hash(teacher, FUNCTION),
    }
    return {key: hashlib.sha256(str(text).encode()).hexdigest() for key, text in texts.items()}
