"""How far two models are apart, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from planish.ir import InputError, Interpreter, Module
from planish.ir.module import Function
from planish.model import Model
from planish.passes.checking.probes import make_probe


@dataclass(frozen=True)
class OutputDifference:
    """One output of one function, compared in float64.

    Attributes:
        largest: the largest absolute difference.
        relative: Euclidean norm of the difference over the norm of the first model's output.
        rounding: the largest difference that float32 alone makes in the first model.
        agreement: share of rows whose largest element is at the same index.
    """

    function: str
    output: str
    largest: float
    relative: float
    rounding: float
    agreement: float

    @property
    def exact(self) -> bool:
        """Whether the difference is within 4 times what rounding makes."""
        return self.largest <= 4 * self.rounding


def verify(
    first: Model | Module,
    second: Model | Module,
    *,
    inputs: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> tuple[OutputDifference, ...]:
    """Compare the functions that both models have and that need no state.

    Args:
        first: the reference.
        second: the model to compare with it.
        inputs: named inputs for `forward`; drawn from `seed` when not given.
        seed: of the drawn inputs.

    Raises:
        InputError: when the models share no function with the same inputs, or their outputs differ in shape.
    """
    a, b = (m.module if isinstance(m, Model) else m for m in (first, second))
    shared = []
    for name, function in a.functions.items():
        other = b.functions.get(name)
        if other is not None and not function.updates and _signature(function) == _signature(other):
            shared.append(name)
    if not shared:
        raise InputError("the two models share no function with the same inputs, so they cannot be compared")
    found: list[OutputDifference] = []
    for name in shared:
        function = a.functions[name]
        given = inputs if inputs is not None and name == "forward" else make_probe(a, function, 0, seed).inputs
        found += _compare(a, b, name, given)
    return tuple(found)


def _signature(function: Function) -> list[tuple[str, str]]:
    return [(v.name, str(v.type)) for v in function.inputs]


def _compare(a: Module, b: Module, name: str, inputs: Mapping[str, torch.Tensor]) -> list[OutputDifference]:
    exact, other = (Interpreter(m, promote=True).run(name, inputs) for m in (a, b))
    rounded = Interpreter(a).run(name, inputs)
    real = next((t for t in inputs.values() if t.dtype == torch.bool), None)
    differences = []
    for output, want in exact.outputs.items():
        if output not in other.outputs or other.outputs[output].shape != want.shape:
            raise InputError(f"the output {output!r} of {name} is not of the same shape in both models")
        rows = [_rows(t, real).double() for t in (want, other.outputs[output], rounded.outputs[output])]
        want, got, near = rows
        if not want.numel():
            continue
        # Equal infinities are no difference, though their gap is not a number.
        gap = torch.where(want == got, 0.0, (got - want).abs())
        norm = float(want.norm())
        differences.append(
            OutputDifference(
                name,
                output,
                float(gap.max()),
                float(gap.norm()) / norm if norm else float(gap.norm()),
                float(torch.where(want == near, 0.0, (near - want).abs()).max()),
                float((want.argmax(-1) == got.argmax(-1)).to(torch.float64).mean()),
            )
        )
    return differences


def _rows(tensor: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """The rows that count: real tokens, where a mask tells them."""
    if real is not None and tensor.shape[: real.dim()] == real.shape:
        return tensor[real]
    return tensor
