"""The pass manager: runs passes in order and holds each to what it says.

After every pass: the input is untouched, the result verifies, the functions' interfaces are as they were, the structural
hash agrees with what the pass says it changed, and the contract holds on probe inputs. The first pass that fails stops
the run with a `PassError` that names the pass and the first operation that diverges, and a reproducer is written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from planish.ir.errors import IRError, PlanishError
from planish.ir.module import Function, Module
from planish.ir.params import InMemory
from planish.ir.structural_hash import structural_hash
from planish.ir.verify import verify
from planish.passes.check import Checker, CheckOptions
from planish.passes.checking.outcome import Outcome
from planish.passes.pass_base import Context, Pass, PassError, PassResult
from planish.passes.report import PassRecord, Report, node_count, param_bytes
from planish.passes.reproducer import write_reproducer


class PassManager:
    """Runs a pipeline.

    Args:
        passes: in the order in which they run.
        check: hold every pass to its contract on probe inputs; the other checks are always on.
        context: what passes may know; its seed also draws the probes.
        options: how much to check.
        after_change: called with the name of each pass that changed something and the module after it.
        limit: run only so many passes, then stop; for bisecting.
        reproduce: write a reproducer of a failure.
        reproducers: the folder for them; None for a new folder among the temporary files.
    """

    def __init__(
        self,
        passes: Iterable[Pass],
        *,
        check: bool = True,
        context: Context | None = None,
        options: CheckOptions | None = None,
        after_change: Callable[[str, Module], None] | None = None,
        limit: int | None = None,
        reproduce: bool = True,
        reproducers: Path | None = None,
    ) -> None:
        self.passes = tuple(passes)
        self.context = context or Context()
        self.checker = Checker(options, self.context.seed) if check else None
        self.after_change = after_change
        self.limit = limit
        self.reproduce = reproduce
        self.reproducers = reproducers

    def run(self, module: Module) -> tuple[Module, Report]:
        """The module after all passes, and what was recorded; `module` stays as it is.

        Raises PassError when a pass breaks its contract (see the module's docstring), with the report so far in
        `report` and the reproducer's folder in `reproducer`; IRError when `module` itself does not verify.
        """
        verify(module)
        records: list[PassRecord] = []
        for number, step in enumerate(self.passes):
            if self.limit is not None and number >= self.limit:
                stopped = f"stopped after {number} of {len(self.passes)} passes, before {step.name}"
                return module, Report(tuple(records), stopped)
            try:
                module, record = self._step(module, step, number)
            except PassError as error:
                error.report = Report(tuple(records))
                error.reproducer = self._reproducer(module, step, error)
                where = f"; to run it again: planish reproduce {error.reproducer}" if error.reproducer else ""
                error.args = (f"{error}{where}",)
                raise
            records.append(record)
            if record.changed and self.after_change is not None:
                self.after_change(step.name, module)
        self.context.progress(1.0, "done")
        return module, Report(tuple(records))

    def _reproducer(self, module: Module, step: Pass, error: PassError) -> Path | None:
        folder = self.reproducers
        if not self.reproduce:
            return None
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="planish-"))
        try:
            return write_reproducer(folder / step.name, module, [step], self.context.seed, str(error))
        except (OSError, PlanishError):
            # The failure itself matters more than a disk that is full, or weights that cannot be written.
            return None

    def _step(self, module: Module, step: Pass, number: int) -> tuple[Module, PassRecord]:
        """One pass and all checks; raises PassError naming the pass."""
        name = step.name
        before_hash, versions = structural_hash(module), _versions(module)
        started = time.perf_counter()
        try:
            result = step.apply(module, self._context(number))
        except PassError as error:
            raise PassError(f"pass {name!r}: {error}") from error
        except PlanishError:
            raise
        except Exception as error:
            raise PassError(f"pass {name!r} raised {type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - started
        changed = _truthful(name, module, result, before_hash, versions)
        outcome = None
        if changed:
            try:
                verify(result.module)
            except IRError as error:
                raise PassError(f"pass {name!r} leaves a module that is not well formed: {error}") from error
            _same_interface(step, module, result.module)
            outcome = self._check(step, module, result, number)
        sizes = [(node_count(m), param_bytes(m)) for m in (module, result.module)]
        record = PassRecord(
            name, step.options(), str(step.contract), result.matches, changed, seconds,
            (sizes[0][0], sizes[1][0]), (sizes[0][1], sizes[1][1]), outcome, result.refusals, result.details,
        )  # fmt: skip
        # An unchanged module is handed on as the same object, so that what is known of it stays known.
        return (result.module if changed else module), record

    def _context(self, number: int) -> Context:
        """The context of one pass, whose progress is a part of the whole."""
        total, report = len(self.passes), self.context.progress
        return replace(self.context, progress=lambda fraction, phrase: report((number + fraction) / total, phrase))

    def _check(self, step: Pass, module: Module, result: PassResult, number: int) -> Outcome | None:
        if self.checker is None:
            return None
        self.context.progress((number + 0.5) / len(self.passes), f"checking {step.name}")
        outcome = self.checker.check(module, result.module, step.contract, result.correspondence, result.carried)
        faults = outcome.failures
        if not faults:
            faults = list(step.ensures(module, result.module, self.context))
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            known = outcome.diverging in faults[0]
            first = "" if known else f"; the first operation that diverges is {outcome.diverging}"
            error = PassError(f"pass {step.name!r} breaks its contract ({step.contract}): {faults[0]}{more}{first}")
            error.diverging = outcome.diverging
            error.outcome = outcome
            raise error
        return outcome


def _versions(module: Module) -> dict[str, tuple[int, ...]]:
    """Torch's counters of writes to each tensor in memory."""
    return {
        name: tuple(t._version for _, t in sorted(p.source.tensors.items()))
        for name, p in module.params.items()
        if isinstance(p.source, InMemory)
    }


def _truthful(
    name: str, module: Module, result: PassResult, before_hash: str, versions: dict[str, tuple[int, ...]]
) -> bool:
    """Whether the module changed; raises PassError when the pass says otherwise, or wrote into its input."""
    written = [n for n, v in _versions(module).items() if v != versions.get(n)]
    if written:
        raise PassError(f"pass {name!r} wrote into the storage of parameter {written[0]!r} of its input")
    changed = structural_hash(result.module) != before_hash
    if changed and not result.matches:
        raise PassError(f"pass {name!r} says it changed nothing, but the module it returns is another one")
    if not changed and result.matches:
        raise PassError(f"pass {name!r} says it rewrote {result.matches} places, but the module it returns is the same")
    return changed


def _interface(function: Function) -> tuple[object, ...]:
    return (
        [(v.name, str(v.type)) for v in function.inputs],
        [(n, str(o.type)) for n, o in zip(function.output_names, function.outputs)],
        sorted(function.updates),
    )


def _same_interface(step: Pass, before: Module, after: Module) -> None:
    """Raise PassError unless the functions keep their inputs, outputs and updated states."""
    name = step.name
    gone = [f for f in before.functions if f not in after.functions]
    if gone:
        raise PassError(f"pass {name!r} removed function {gone[0]!r}")
    new = [f for f in after.functions if f not in before.functions]
    if new and not step.adds_functions:
        raise PassError(f"pass {name!r} added function {new[0]!r}, which it does not declare (`adds_functions`)")
    for key, function in before.functions.items():
        for what, old, got in zip(
            ("inputs", "outputs", "updated states"), _interface(function), _interface(after.functions[key])
        ):
            if old != got:
                raise PassError(f"pass {name!r} changed the {what} of function {key!r} from {old} to {got}")


__all__ = ["CheckOptions", "PassManager", "PassRecord", "Report"]
