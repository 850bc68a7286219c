"""Holding a pass to its contract on probe inputs: region by region, then each function as a whole.

Exact and Refines: see `checking.regions` and `checking.whole`. A function whose two versions are equal by structure
needs no probe. Lossy: the metric on whole functions. Regions stream: each is evaluated when the source's values at its
cut are known, with its own parameters only; what exceeds the budget of bytes is reported as skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from planish.ir.module import Function, Module, ParamRef, Value
from planish.ir.params import Missing
from planish.ir.types import TensorType, same_dim
from planish.passes.checking.alignment import Alignment, Region
from planish.passes.checking.irrelevance import irrelevant
from planish.passes.checking.outcome import FAILED, Outcome, RegionOutcome
from planish.passes.checking.probes import Probe, make_probe
from planish.passes.checking.regions import Excuse, Ignore, RegionCheck
from planish.passes.checking.whole import WholeRuns, check_whole, first_divergence
from planish.passes.contract import Contract, Lossy, Refines
from planish.passes.pass_base import Correspondence

SMALL_MODEL = 64 << 20


@dataclass(frozen=True)
class CheckOptions:
    """How much to check.

    Attributes:
        probes: how many probe inputs for each function; None for two, or one when the parameters exceed 64 MiB.
        region_bytes: a region whose parameters (in float64, with bounds) take more is skipped.
        whole_bytes: a function whose parameters take more, as stored, is not run as a whole.
        working_dtypes: whether regions are also evaluated in their own dtypes.
    """

    probes: int | None = None
    region_bytes: int = 4 << 30
    whole_bytes: int = 16 << 30
    working_dtypes: bool = True


class Checker:
    """Checks passes one after the other, sharing what they have in common."""

    def __init__(self, options: CheckOptions | None = None, seed: int = 0) -> None:
        self.options = options or CheckOptions()
        self.seed = seed
        self._runs = WholeRuns()

    def check(
        self, before: Module, after: Module, contract: Contract, correspondence: Mapping[str, Correspondence]
    ) -> Outcome:
        """Compare every function that both modules have. Failures are in the outcome, not raised.

        Raises PlanishError when the source itself cannot be run.
        """
        started = time.perf_counter()
        outcome = Outcome()
        for name, source in before.functions.items():
            if name in after.functions:
                claims = correspondence.get(name, {})
                outcome = _merged(outcome, self._function(before, after, source, contract, claims))
        added = tuple(name for name in after.functions if name not in before.functions)
        return replace(outcome, added=added, seconds=time.perf_counter() - started)

    def _function(
        self, before: Module, after: Module, source: Function, contract: Contract, claims: Correspondence
    ) -> Outcome:
        name = source.name
        if _missing(before, source) or _missing(after, after.functions[name]):
            return Outcome(skipped=(f"{name}: parameters without data cannot be computed with",))
        alignment = Alignment(before, after, source, after.functions[name], claims)
        regions = [] if isinstance(contract, Lossy) else alignment.regions()
        if not regions and not isinstance(contract, Lossy):
            return Outcome()
        nbytes = sum(before.params[n].nbytes for n in {r.name for r in source.references() if isinstance(r, ParamRef)})
        with _threads_for(nbytes):
            return self._on_probes(before, after, alignment, regions, contract, nbytes)

    def _on_probes(
        self,
        before: Module,
        after: Module,
        alignment: Alignment,
        regions: list[Region],
        contract: Contract,
        nbytes: int,
    ) -> Outcome:
        source, name = alignment.source, alignment.source.name
        count = self.options.probes or (2 if nbytes <= SMALL_MODEL else 1)
        outcome = Outcome()
        for number in range(count):
            probe = make_probe(before, source, number, self.seed)
            ignore = _ignore(contract, source, probe)
            checked = RegionCheck(
                before, after, source, regions, probe,
                budget=self.options.region_bytes, ignore=ignore, working=self.options.working_dtypes,
                excuse=self._excuse(before, source, probe, ignore) if isinstance(contract, Refines) else None,
            ).run()  # fmt: skip
            outcome = _merged(outcome, Outcome(regions=tuple(checked), diverging=_first_failed(checked)))
            if nbytes > self.options.whole_bytes:
                sentence = (
                    f"{name} as a whole: its parameters take {nbytes} bytes, more than {self.options.whole_bytes}"
                )
                outcome = replace(outcome, skipped=(*outcome.skipped, sentence))
                continue
            whole = check_whole(before, after, name, probe, contract, ignore, self._runs)
            outcome = _merged(outcome, Outcome(whole=tuple(whole)))
            if any(o.status == FAILED for o in whole) and not outcome.diverging and not isinstance(contract, Lossy):
                outcome = replace(outcome, diverging=first_divergence(before, after, alignment, probe, ignore))
            if outcome.failures:
                break
        return outcome

    def _excuse(self, before: Module, source: Function, probe: Probe, ignore: Ignore) -> Excuse:
        open_results = {n: ignore(o.type) for n, o in zip(source.output_names, source.outputs)}

        def excuse(disturbed: Mapping[Value, torch.Tensor]) -> bool:
            plain = self._runs.run(before, source.name, probe)
            return irrelevant(before, source, probe, disturbed, plain, open_results)

        return excuse


@contextmanager
def _threads_for(nbytes: int) -> Iterator[None]:
    """One thread for a small model: waking others costs more than the work they would share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if nbytes <= SMALL_MODEL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _missing(module: Module, function: Function) -> bool:
    names = {r.name for r in function.references() if isinstance(r, ParamRef)}
    return any(isinstance(module.params[n].source, Missing) for n in names)


def _first_failed(outcomes: list[RegionOutcome]) -> str:
    return next((o.place.partition(", ")[2] for o in outcomes if o.status == FAILED), "")


def _merged(a: Outcome, b: Outcome) -> Outcome:
    return Outcome(
        (*a.regions, *b.regions), (*a.whole, *b.whole), tuple(dict.fromkeys((*a.skipped, *b.skipped))),
        diverging=a.diverging or b.diverging,
    )  # fmt: skip


def _ignore(contract: Contract, source: Function, probe: Probe) -> Ignore:
    """The elements that a Refines contract leaves open, by the type of a value."""
    if not isinstance(contract, Refines) or contract.where not in probe.inputs:
        return lambda kind: None
    mask_type = next(v.type for v in source.inputs if v.name == contract.where)
    mask = probe.inputs[contract.where] != 0

    def ignore(kind: TensorType) -> torch.Tensor | None:
        axes = _axes_of(mask_type, kind)
        if axes is None:
            return None
        shape = kind.concrete(probe.sizes)
        # The mask's axes, in the order in which the value has them, with ones in between.
        order = sorted(range(len(axes)), key=axes.__getitem__)
        view = [1] * kind.rank
        for axis in order:
            view[axes[axis]] = mask.shape[axis]
        return ~mask.permute(order).reshape(view).expand(shape)

    return ignore


def _axes_of(mask: TensorType, kind: TensorType) -> list[int] | None:
    """For each axis of the mask, the first axis of the value with the same symbolic size; None if one has none."""
    axes: list[int] = []
    for dim in mask.shape:
        fitting = [n for n, d in enumerate(kind.shape) if not isinstance(d, int) and same_dim(d, dim) and n not in axes]
        if not fitting:
            return None
        axes.append(fitting[0])
    return axes


__all__ = ["CheckOptions", "Checker", "Outcome"]
