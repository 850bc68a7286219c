"""Where to cut two functions when a pass does not say: at values that are equal on the probes.

A value of the source and one of the result that agree on every probe are taken for the same and made an obligation like
any other, so a wrong guess cannot hide an error; it only makes a region larger or smaller than the pass meant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planish.ir.errors import PlanishError
from planish.ir.interpret import Interpreter
from planish.ir.module import Function, Module, Node, Operand, Value
from planish.passes.checking.alignment import Alignment
from planish.passes.checking.probes import Probe

CLOSE = 1e-9


def suggest(before: Module, after: Module, alignment: Alignment, probes: Sequence[Probe]) -> dict[Value, Operand]:
    """Pairs of values, of one type, that neither structure nor the pass has matched and that agree on the probes."""
    try:
        old = [_prints(before, alignment.source, probe) for probe in probes]
        new = [_prints(after, alignment.result, probe) for probe in probes]
    except (PlanishError, RuntimeError, IndexError, ValueError, TypeError):
        return {}
    matched = set(alignment.image.values())
    waiting: dict[str, list[tuple[Value, list[float]]]] = {}
    for node in alignment.result.nodes:
        for value in node.outputs:
            if alignment.result_id(value) not in matched:
                waiting.setdefault(str(value.type), []).append((value, [n for p in new for n in p[value]]))
    found: dict[Value, Operand] = {}
    for node in alignment.source.nodes:
        for value in node.outputs:
            if value in alignment.image:
                continue
            mark = [n for p in old for n in p[value]]
            candidates = waiting.get(str(value.type), [])
            match = next((c for c in candidates if _close(mark, c[1])), None)
            if match is not None:
                found[value] = match[0]
                candidates.remove(match)
    return found


def _prints(module: Module, function: Function, probe: Probe) -> dict[Value, tuple[float, float]]:
    """Two numbers for each value: its size, and its product with a fixed irregular tensor."""
    prints: dict[Value, tuple[float, float]] = {}

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(node.outputs, results):
            x = tensor.to(torch.float64).flatten()
            weights = torch.cos(1.2345 * torch.arange(x.numel(), dtype=torch.float64) + 0.5)
            prints[value] = (float(x.abs().sum()), float(x @ weights))

    Interpreter(module, promote=True, observe=observe).run(function.name, probe.inputs, probe.states, probe.sizes)
    return prints


def _close(a: list[float], b: list[float]) -> bool:
    """Whether the numbers agree relative to the sizes; infinities and NaN agree with nothing."""
    pairs = zip(a[::2], b[::2], a[1::2], b[1::2])
    return all(abs(s - t) <= CLOSE * s and abs(x - y) <= CLOSE * s for s, t, x, y in pairs)
