"""The check of whole functions: source and result in float64, against what float32 costs the source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch

from planish.ir.errors import PlanishError
from planish.ir.interpret import Interpreter, Result
from planish.ir.module import Function, Module, Node, Operand
from planish.passes.checking.alignment import Alignment
from planish.passes.checking.compare import by_float32, measure
from planish.passes.checking.outcome import FAILED, WholeOutcome
from planish.passes.checking.probes import Probe
from planish.passes.checking.regions import Ignore, describe
from planish.passes.contract import Contract, Lossy

_FAULTS = (PlanishError, RuntimeError, IndexError, ValueError, TypeError)


class WholeRuns:
    """Results of whole functions in float64, kept as long as their module lives: the result of one pass is the source of
    the next."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Module, dict[tuple[str, str], Result]] = WeakKeyDictionary()

    def run(self, module: Module, function: str, probe: Probe) -> Result:
        kept = self._kept.setdefault(module, {})
        key = (function, probe.digest)
        if key not in kept:
            kept[key] = _run(module, function, probe, torch.float64)
        return kept[key]


def _run(module: Module, function: str, probe: Probe, compute: torch.dtype) -> Result:
    return Interpreter(module, compute=compute).run(function, probe.inputs, probe.states, probe.sizes)


def check_whole(
    before: Module, after: Module, name: str, probe: Probe, contract: Contract, ignore: Ignore, runs: WholeRuns
) -> list[WholeOutcome]:
    """One outcome for each output and each updated state of a function."""
    source, result = before.functions[name], after.functions[name]
    try:
        a = runs.run(before, name, probe)
    except _FAULTS as error:
        raise PlanishError(f"the probe ({probe}) cannot be run through {name!r} before the pass: {error}") from error
    try:
        b = runs.run(after, name, probe)
    except _FAULTS as error:
        sentence = f"cannot be evaluated: {' '.join(str(error).split())}"
        return [WholeOutcome(name, math.inf, 0.0, FAILED, sentence)]
    rounded = None if isinstance(contract, Lossy) else _run(before, name, probe, torch.float32)
    outcomes = []
    for number, output in enumerate(source.output_names):
        kind = source.outputs[number].type
        x, y = a[number], b[number]
        z = None if rounded is None else rounded[number]
        outcomes.append(_outcome(f"{name}, output {output!r}", contract, x, y, z, ignore(kind)))
    for state in sorted({*source.updates, *result.updates}):
        z = None if rounded is None else rounded.states[state]
        x, y = (r.states[state] for r in (a, b))
        outcomes.append(_outcome(f"{name}, state {state!r}", contract, x, y, z, ignore(before.states[state].type)))
    return outcomes


def _outcome(
    place: str, contract: Contract, source: torch.Tensor, result: torch.Tensor, rounded: torch.Tensor | None,
    ignore: torch.Tensor | None,
) -> WholeOutcome:  # fmt: skip
    if isinstance(contract, Lossy):
        if not source.dtype.is_floating_point:
            return WholeOutcome(place, 0.0, contract.budget)
        found = measure(contract.metric, source, result, ignore)
        if found <= contract.budget:
            return WholeOutcome(place, found, contract.budget)
        sentence = f"its {contract.metric} is {found:.4g}, above the budget of {contract.budget:g}"
        return WholeOutcome(place, found, contract.budget, FAILED, sentence)
    assert rounded is not None
    difference, allowed, sentence = by_float32(source, result, rounded, ignore)
    return WholeOutcome(place, difference, allowed, FAILED if sentence else "checked", sentence)


def first_divergence(before: Module, after: Module, alignment: Alignment, probe: Probe, ignore: Ignore) -> str:
    """The first operation of the source whose result the other function does not hold, among those that match."""
    numbers = alignment.image
    exact = _observed(before, alignment.source, probe, torch.float64)
    rounded = _observed(before, alignment.source, probe, torch.float32)
    held = _observed(after, alignment.result, probe, torch.float64)
    by_number = {alignment.result_id(v): t for v, t in held.items()}
    for node in alignment.source.nodes:
        for value in node.outputs:
            if value in alignment.carried:
                continue
            other = by_number.get(numbers.get(value))
            if other is not None and by_float32(exact[value], other, rounded[value], ignore(value.type))[2]:
                return describe(node)
    return ""


def _observed(module: Module, function: Function, probe: Probe, compute: torch.dtype) -> Mapping[Operand, torch.Tensor]:
    """Every value that a function computes, as far as it gets."""
    found: dict[Operand, torch.Tensor] = {}

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        found.update(zip(node.outputs, results))

    try:
        interpreter = Interpreter(module, compute=compute, observe=observe)
        interpreter.run(function.name, probe.inputs, probe.states, probe.sizes)
    except _FAULTS:
        pass  # what was computed before it failed tells where it diverges
    return found
