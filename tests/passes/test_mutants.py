"""Faults planted into the results of correct passes are caught by the manager, in the region where they act.

Mutants come from the records: of every operation (`sample`), on whose instance a correct pass has acted, and of every
rule (`Rule.sample`), in what it built. Not counted are mutants that compute the same as the original on inputs that the
manager does not see (a swap of commuting operands, a window longer than the sequence). The table is printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from planish.ir import Builder, Function, Interpreter, Module, Operand, Rewriter, verify
from planish.ir.errors import PlanishError
from planish.ir.ops import OPS, Slot, aten
from planish.passes.check import CheckOptions
from planish.passes.checking.alignment import Alignment
from planish.passes.checking.probes import Probe, make_probe
from planish.passes.checking.regions import describe
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Correspondence, Pass, PassError, PassResult
from planish.passes.rewrite import rewrite
from planish.testing.mutants import Mutant, mutants, with_mutant
from planish.testing.rules import SeededChooser, registered_rules

UNSEEN = (11, 12, 13, 14)
"""Numbers of probes that no check draws: the oracle's inputs."""


def planted(result: Module, correspondence: Correspondence) -> Pass:
    """A correct pass whose result carries a fault."""

    class Planted(Pass):
        name: ClassVar[str] = "planted"

        def apply(self, module: Module, context: Context) -> PassResult:
            return PassResult(result, 1, {"forward": correspondence})

    return Planted()


def rebuilt(module: Module) -> tuple[Module, Correspondence]:
    """What a correct pass that touches every operation makes: each anew, after a copy of its first operand."""
    function = module.functions["forward"]
    rewriter = Rewriter(function)
    for node in function.nodes:
        operands = list(rewriter.operands(node))
        first = next((n for n, o in enumerate(operands) if o is not None), None)
        if first is not None:
            operands[first] = rewriter.emit(aten("clone.default", Slot(0)), _present(operands[first]))
        for old, new in zip(node.outputs, rewriter.node(node.op, *operands, source=node.source).outputs):
            rewriter.replace(old, new)
    return module.with_function(rewriter.finish_like()), rewriter.correspondence


def _present(operand: Operand | None) -> Operand:
    assert operand is not None
    return operand


def op_module(name: str, seed: int) -> Module:
    """One drawn instance of an operation, on inputs, its floating results negated behind it."""
    sample = OPS[name].sample(SeededChooser(seed))
    builder = Builder("forward")
    operands = [None if t is None else builder.input(f"x{n}", t) for n, t in enumerate(sample.operands)]
    made = builder.node(sample.op, *operands, source=f"{name} {seed}")
    results: list[Operand] = []
    for value in made.outputs:
        negated = value.type.dtype.is_floating_point
        results.append(builder.emit(aten("neg.default", Slot(0)), value) if negated else value)
    return Module({"forward": builder.finish(results, [f"y{n}" for n in range(len(results))])})


def planted_in_ops(seeds: range) -> Iterator[tuple[Module, Module, Correspondence, Mutant]]:
    for name in OPS:
        for seed in seeds:
            source = op_module(name, seed)
            result, correspondence = rebuilt(source)
            function = result.functions["forward"]
            node = next(n for n in function.nodes if n.source == f"{name} {seed}")
            for mutant in mutants(function, node):
                yield source, result, correspondence, mutant


def planted_in_rules(seeds: range) -> Iterator[tuple[Module, Module, Correspondence, Mutant]]:
    for _, rule in registered_rules():
        for seed in seeds:
            source = rule.sample(SeededChooser(seed))
            done = rewrite(source, source.functions["forward"], [rule])
            result = source.with_function(done.function).with_params(done.params)
            for node in set(done.function.nodes) - set(source.functions["forward"].nodes):
                for mutant in mutants(done.function, node):
                    yield source, result, done.correspondence, mutant


def run(module: Module, function: Function, probe: Probe, *, promote: bool) -> list[torch.Tensor]:
    interpreter = Interpreter(module.with_function(function), promote=promote)
    results = interpreter.run("forward", probe.inputs, probe.states, probe.sizes)
    return [t.to(torch.float64) for t in results.outputs.values()]


def is_fault(result: Module, source: Module, mutant: Mutant) -> bool:
    """Whether a mutant computes something else, judged on unseen inputs without any derived bound."""
    own = result.functions["forward"]
    for number in UNSEEN:
        probe = make_probe(source, source.functions["forward"], number, seed=number)
        try:
            right = run(result, own, probe, promote=not mutant.rounds)
        except (PlanishError, RuntimeError, IndexError):
            continue
        try:
            wrong = run(result, mutant.function, probe, promote=not mutant.rounds)
        except (PlanishError, RuntimeError, IndexError):
            return True
        least = 1e-7
        if mutant.rounds:
            least = 1e-10 if mutant.node.outputs[0].type.dtype == torch.float64 else 1e-3
        for a, b in zip(right, wrong):
            defined = torch.isfinite(a)
            scale = float(a[defined].abs().max()) if bool(defined.any()) else 0.0
            off = torch.nan_to_num((a - b).abs()[defined], nan=torch.inf)
            if off.numel() and float(off.max()) > least * max(scale, 1e-3):
                return True
    return False


def caught(source: Module, mutated: Module, correspondence: Correspondence, mutant: Mutant) -> str:
    """How the manager caught a mutant: "region" in the region that holds it, "elsewhere", or "" if it did not."""
    try:
        PassManager([planted(mutated, correspondence)], options=CheckOptions(probes=2)).run(source)
    except PassError as error:
        forward = source.functions["forward"]
        alignment = Alignment(source, mutated, forward, mutant.function, correspondence)
        made = {v for n in mutant.changed for v in n.outputs}
        regions = [
            r
            for r in alignment.regions()
            if set(mutant.changed) & set(r.result_nodes) or made & {p[1] for p in r.pairs}
        ]
        places = {describe(r.last) for r in regions}
        return "region" if error.diverging in places else "elsewhere"
    return ""


def hunt(
    planted: Iterator[tuple[Module, Module, Correspondence, Mutant]], share: int
) -> tuple[list[str], Counter[str]]:
    """Plant every `share`-th mutant; returns what survived and the counts."""
    survivors: list[str] = []
    counts: Counter[str] = Counter()
    for number, (source, result, correspondence, mutant) in enumerate(planted):
        if number % share:
            continue
        mutated = with_mutant(result, mutant)
        verify(mutated)
        if not is_fault(result, source, mutant):
            counts[f"{mutant.kind}: equivalent"] += 1
            continue
        how = caught(source, mutated, correspondence, mutant)
        counts[f"{mutant.kind}: planted"] += 1
        counts[f"{mutant.kind}: killed"] += how == "region"
        if how != "region":
            survivors.append(
                f"{mutant.kind} of {mutant.record} ({mutant.detail}) in {describe(mutant.node)}: {how or 'alive'}"
            )
    return survivors, counts


def table(counts: Counter[str]) -> str:
    rows = [f"{'mutant':24}{'killed':>8}{'planted':>9}{'equivalent':>12}"]
    for kind in [*sorted({key.rpartition(": ")[0] for key in counts}), "all"]:
        chosen = {k.rpartition(": "): n for k, n in counts.items() if kind in ("all", k.rpartition(": ")[0])}
        killed, planted, equal = (
            sum(n for k, n in chosen.items() if k[2] == what) for what in ("killed", "planted", "equivalent")
        )
        rows.append(f"{kind:24}{killed:>8}{planted:>9}{equal:>12}")
    return "\n".join(rows)


def report(capsys: pytest.CaptureFixture[str], counts: Counter[str]) -> None:
    with capsys.disabled():
        print(f"\n{table(counts)}")


def test_mutants_of_operations_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    survivors, counts = hunt(planted_in_ops(range(2)), share=3)
    report(capsys, counts)
    assert not survivors
    assert counts["attribute perturbed: planted"] and counts["dtype changed: planted"]


def test_mutants_of_rules_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    survivors, counts = hunt(planted_in_rules(range(1)), share=3)
    report(capsys, counts)
    assert not survivors
    assert counts["epsilon lost: planted"] + counts["attribute perturbed: planted"]


@pytest.mark.full
def test_all_mutants_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    in_ops, in_rules = hunt(planted_in_ops(range(8)), share=1), hunt(planted_in_rules(range(3)), share=1)
    report(capsys, in_ops[1] + in_rules[1])
    assert not in_ops[0] and not in_rules[0]
