"""What passes that are still to come will round, so that a network can be trained in view of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from planish.ir.encodings import Encoding
from planish.ir.errors import InputError
from planish.ir.module import Function, Module, Operand, State, Value
from planish.ir.ops import Attention, QuantizeActivation
from planish.ir.types import TensorType
from planish.passes.pass_base import Context, Pass
from planish.passes.quantize import Quantize, encoded, lazily
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_cache import ROLES, QuantizeCache


@dataclass(frozen=True)
class Held:
    """How a weight will be held: rounded by a method that looks at nothing but the weight."""

    encoding: Encoding
    method: str

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it will be decoded, in its dtype."""
        storage = encoded(weight, self.encoding, self.method)
        return self.encoding.decode(storage, TensorType(weight.dtype, tuple(weight.shape)))


@dataclass(frozen=True)
class Deployment:
    """A function as it will be once the passes have run, over the weights as they are now.

    Attributes:
        module: with the function rewritten and the parameters as they came.
        weights: how they will be held; those that calibration data are to round are left out.
        rows: what attention reads from caches of few bits.
    """

    module: Module
    weights: Mapping[str, Held]
    rows: Mapping[Operand, Encoding]

    def rounds(self, function: str) -> bool:
        """Whether anything that the function reads or computes is rounded."""
        codes = any(isinstance(node.op, QuantizeActivation) for node in self.module.functions[function].nodes)
        return codes or bool(self.weights) or bool(self.rows)


def deployment(module: Module, passes: Sequence[Pass], function: str) -> Deployment:
    """What `quantize`, `quantize-activations` and `quantize-cache` will make of a function, in the order given.

    A weight that is to be rounded on calibration data (GPTQ) stays as it is: that rounding repairs most of what plain
    rounding would lose, and depends on everything in front of it. Rows are rounded where attention reads them, which is what
    it finds in the caches of the programs that are derived from the function.

    Raises:
        InputError: for other passes, and for options that do not fit the module.
    """
    weights: dict[str, Held] = {}
    rows: dict[Operand, Encoding] = {}
    after = module
    for step in passes:
        if isinstance(step, Quantize):
            if step.average_bits is not None:
                raise InputError(
                    "the option 'average_bits' of pass 'quantize' chooses formats on calibration data, after rotations are "
                    "learned; give the formats by rules"
                )
            chosen = step.encodings(after)
            after = after.with_params([lazily(after.params[n], e, "rtn") for n, (e, _) in chosen.items()])
            weights |= {name: Held(encoding, method) for name, (encoding, method) in chosen.items() if method != "gptq"}
        elif isinstance(step, QuantizeActivations):
            after = step.apply(after, Context()).module
        elif isinstance(step, QuantizeCache):
            rows = _rows(after.functions[function], step) | rows
        else:
            raise InputError(
                f"what pass {step.name!r} will do to the network is not known while rotations are learned, only what "
                f"'quantize', 'quantize-activations' and 'quantize-cache' will; run it before, or leave it out here"
            )
    return Deployment(replace(module, functions=after.functions), weights, rows)


def _rows(function: Function, step: QuantizeCache) -> dict[Operand, Encoding]:
    """The keys and values of a function that will lie in caches, and how."""
    roles: dict[Value, set[str]] = {}
    for node in function.nodes:
        for number, role in ROLES.items() if isinstance(node.op, Attention) else ():
            operand = node.inputs[number]
            if isinstance(operand, Value):
                roles.setdefault(operand, set()).add(role)
    states = {value: State(value.name or " and ".join(sorted(of)), value.type) for value, of in roles.items()}
    found = {value: step.encoding_of(states[value], of) for value, of in roles.items()}
    return {value: encoding for value, encoding in found.items() if encoding is not None}
