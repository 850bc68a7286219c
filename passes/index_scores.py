"""How much the indices of a space matter: by the sizes of parameters, or by what they carry on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from planish.ir.interpret import Interpreter
from planish.ir.module import Module, Node, Value
from planish.ir.spaces.action import squares
from planish.ir.spaces.analysis import Space, Spaces
from planish.passes.calibration.data import Calibration

FUNCTION = "forward"


def by_magnitude(module: Module, spaces: Spaces, space: Space) -> torch.Tensor:
    """For each index [n], float64: the sum of squares of what each parameter has there, as a part of the parameter's mean.

    Source: the norm over coupled parameters of Fang et al., DepGraph (2023), each parameter counting alike.
    """
    total = torch.zeros(int(space.size), dtype=torch.float64)  # type: ignore[call-overload]
    for name in dict.fromkeys(name for name, _ in space.parameters):
        of_name = squares(module.params[name].wide_value(), spaces.terms(("param", name)), space.atom)
        total += of_name / of_name.mean().clamp(min=torch.finfo(torch.float64).tiny)
    return total


def by_activation(
    module: Module,
    spaces: Spaces,
    chosen: Sequence[Space],
    calibration: Calibration,
    progress: Callable[[float, str], None],
) -> list[torch.Tensor]:
    """For each space and index [n], float64: the mean square of what `forward` has there on calibration data, times the sum
    of squares of the weights that read it, added up over all that do.

    One batch is in memory at a time.

    Source: the score of Sun et al., Wanda (2023), summed over all that an index is multiplied with.
    """
    read: dict[Value, list[tuple[int, torch.Tensor]]] = {}
    for number, space in enumerate(chosen):
        for ruling in space.rulings:
            tensors = [ruling.tensors[p] for places in ruling.law.silent or () for p in places if p in ruling.tensors]
            values = [t for t in tensors if isinstance(t, Value)]
            names = [t[1] for t in tensors if isinstance(t, tuple) and t[0] == "param"]
            if len(values) == len(names) == 1:
                weights = squares(module.params[names[0]].wide_value(), spaces.terms(("param", names[0])), space.atom)
                read.setdefault(values[0], []).append((number, weights))
    scores = [torch.zeros(int(s.size), dtype=torch.float64) for s in chosen]  # type: ignore[call-overload]

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        for value, x in zip(node.outputs, results):
            for number, weights in read.get(value, ()):
                energy = squares(x, spaces.terms(value), chosen[number].atom)
                scores[number] += energy * len(energy) / max(1, x.numel()) * weights

    batches = calibration.batches
    for done, batch in enumerate(batches):
        with torch.no_grad():
            Interpreter(module, observe=observe).run(FUNCTION, batch)
        progress((done + 1) / len(batches), f"observed batch {done + 1} of {len(batches)}")
    return [score / len(batches) for score in scores]
