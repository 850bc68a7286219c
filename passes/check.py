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
from functools import cached_property

import torch

from planish.ir.module import Function, Module, ParamRef, Value
from planish.ir.params import Missing, Param
from planish.ir.types import TensorType, same_dim
from planish.passes.checking.alignment import Alignment, Region
from planish.passes.checking.irrelevance import irrelevant
from planish.passes.checking.outcome import FAILED, Outcome, RegionOutcome
from planish.passes.checking.probes import Probe, make_probe
from planish.passes.checking.regions import Excuse, Ignore, RegionCheck
from planish.passes.checking.suggest import suggest
from planish.passes.checking.whole import WholeRuns, check_whole, first_divergence
from planish.passes.contract import Contract, Lossy, Refines
from planish.passes.pass_base import Carried, Correspondence

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


@dataclass(frozen=True)
class _Task:
    """One function of two modules."""

    before: Module
    after: Module
    name: str
    contract: Contract

    @property
    def source(self) -> Function:
        return self.before.functions[self.name]

    @property
    def result(self) -> Function:
        return self.after.functions[self.name]

    def _params(self, module: Module) -> list[Param]:
        names = {r.name for r in module.functions[self.name].references() if isinstance(r, ParamRef)}
        return [module.params[n] for n in names]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the source's parameters."""
        return sum(p.nbytes for p in self._params(self.before))

    @cached_property
    def missing(self) -> bool:
        """Whether some parameter has no data."""
        return any(isinstance(p.source, Missing) for m in (self.before, self.after) for p in self._params(m))


class Checker:
    """Checks passes one after the other, sharing what they have in common."""

    def __init__(self, options: CheckOptions | None = None, seed: int = 0) -> None:
        self.options = options or CheckOptions()
        self.seed = seed
        self._runs = WholeRuns()

    def check(
        self,
        before: Module,
        after: Module,
        contract: Contract,
        correspondence: Mapping[str, Correspondence],
        carried: Mapping[str, Mapping[Value, Carried]] | None = None,
    ) -> Outcome:
        """Compare every function that both modules have. Failures are in the outcome, not raised.

        `correspondence` and `carried` are what the pass says of values (`PassResult`).

        Raises PlanishError when the source itself cannot be run.
        """
        started = time.perf_counter()
        outcome = Outcome()
        for task in self._tasks(before, after, contract):
            claims, images = correspondence.get(task.name, {}), (carried or {}).get(task.name, {})
            with _threads_for(task.nbytes):
                outcome = _merged(outcome, self._function(task, claims, images))
        added = tuple(name for name in after.functions if name not in before.functions)
        return replace(outcome, added=added, seconds=time.perf_counter() - started)

    def check_whole(self, before: Module, after: Module, contract: Contract) -> Outcome:
        """Compare whole functions only: for two modules of which one did not come from the other by one pass."""
        started = time.perf_counter()
        outcome = Outcome()
        for task in self._tasks(before, after, contract):
            with _threads_for(task.nbytes):
                for probe in self._probes(task):
                    outcome = _merged(outcome, self._whole(task, probe))
        return replace(outcome, seconds=time.perf_counter() - started)

    def _tasks(self, before: Module, after: Module, contract: Contract) -> list[_Task]:
        return [_Task(before, after, n, contract) for n in before.functions if n in after.functions]

    def _probes(self, task: _Task) -> list[Probe]:
        count = self.options.probes or (2 if task.nbytes <= SMALL_MODEL else 1)
        return [make_probe(task.before, task.source, number, self.seed) for number in range(count)]

    def _function(self, task: _Task, claims: Correspondence, images: Mapping[Value, Carried]) -> Outcome:
        if task.missing:
            return Outcome(skipped=(f"{task.name}: parameters without data cannot be computed with",))
        lossy = isinstance(task.contract, Lossy)
        alignment = Alignment(task.before, task.after, task.source, task.result, claims, images)
        regions = [] if lossy else alignment.regions()
        if not regions and not lossy:
            return Outcome()
        probes = self._probes(task)
        told = bool(claims)
        if not told and regions:
            claims = suggest(task.before, task.after, alignment, probes)
            alignment = Alignment(task.before, task.after, task.source, task.result, claims)
            regions = alignment.regions()
        outcome = Outcome()
        for probe in probes:
            checked = self._regions(task, regions, probe, images)
            whole = self._whole(task, probe)
            outcome = _merged(outcome, _merged(Outcome(tuple(checked), diverging=_first_failed(checked, told)), whole))
            if whole.failures and not outcome.diverging and not lossy:
                ignore = _ignore(task, probe)
                outcome = replace(
                    outcome, diverging=first_divergence(task.before, task.after, alignment, probe, ignore)
                )
            if outcome.failures:
                break
        return outcome

    def _regions(
        self, task: _Task, regions: list[Region], probe: Probe, images: Mapping[Value, Carried]
    ) -> list[RegionOutcome]:
        ignore = _ignore(task, probe)
        return RegionCheck(
            task.before, task.after, task.source, regions, probe,
            budget=self.options.region_bytes, ignore=ignore, working=self.options.working_dtypes,
            excuse=self._excuse(task, probe, ignore) if isinstance(task.contract, Refines) else None, carried=images,
        ).run()  # fmt: skip

    def _whole(self, task: _Task, probe: Probe) -> Outcome:
        if task.missing:
            return Outcome(skipped=(f"{task.name}: parameters without data cannot be computed with",))
        if task.nbytes > self.options.whole_bytes:
            sentence = f"its parameters take {task.nbytes} bytes, more than {self.options.whole_bytes}"
            return Outcome(skipped=(f"{task.name} as a whole: {sentence}",))
        ignore = _ignore(task, probe)
        found = check_whole(task.before, task.after, task.name, probe, task.contract, ignore, self._runs)
        return Outcome(whole=tuple(found))

    def _excuse(self, task: _Task, probe: Probe, ignore: Ignore) -> Excuse:
        source = task.source
        open_results = {n: ignore(o.type) for n, o in zip(source.output_names, source.outputs)}

        def excuse(disturbed: Mapping[Value, torch.Tensor]) -> bool:
            plain = self._runs.run(task.before, task.name, probe)
            return irrelevant(task.before, source, probe, disturbed, plain, open_results)

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


def _first_failed(outcomes: list[RegionOutcome], told: bool) -> str:
    """The operation that the first failed region replaced. Where the pass did not tell, and a fault spoils every later
    match, that is the one at which the region begins."""
    failed = next((o for o in outcomes if o.status == FAILED), None)
    if failed is None:
        return ""
    return failed.place.partition(", ")[2] if told else failed.begins


def _merged(a: Outcome, b: Outcome) -> Outcome:
    return Outcome(
        (*a.regions, *b.regions), (*a.whole, *b.whole), tuple(dict.fromkeys((*a.skipped, *b.skipped))),
        diverging=a.diverging or b.diverging,
    )  # fmt: skip


def _ignore(task: _Task, probe: Probe) -> Ignore:
    """The elements that a Refines contract leaves open, by the type of a value."""
    contract = task.contract
    if not isinstance(contract, Refines):
        return lambda kind: None
    masked = _masked(task, contract, probe)
    outputs = zip(task.source.output_names, task.source.outputs)
    sizes = {operand.type.shape[-1] for name, operand in outputs if name == contract.output and operand.type.rank}

    def ignore(kind: TensorType) -> torch.Tensor | None:
        found = masked(kind)
        if not kind.rank or kind.shape[-1] not in sizes:
            return found
        shape = kind.concrete(probe.sizes)
        others = torch.ones(shape[-1], dtype=torch.bool)
        others[list(contract.among)] = False
        return others.expand(shape) if found is None else others | found

    return ignore


def _masked(task: _Task, contract: Refines, probe: Probe) -> Ignore:
    """The elements at which the input that a contract names is false."""
    if contract.where is None or contract.where not in probe.inputs:
        return lambda kind: None
    mask_type = next(v.type for v in task.source.inputs if v.name == contract.where)
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
