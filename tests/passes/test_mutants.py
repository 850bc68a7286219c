"""Faults planted into the results of correct passes are caught by the manager, in the region where they act.

Mutants come from the records: of every operation (`sample`), on whose instance a correct pass has acted, and of every
rule (`Rule.sample`), in what it built. Not counted are mutants that compute the same as the original on inputs that the
manager does not see (a swap of commuting operands, a window longer than the sequence). The table is printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from planish.frontends import import_checkpoint
from planish.ir import Builder, Function, Interpreter, Module, Operand, Rewriter, structural_hash, verify
from planish.ir.errors import PlanishError
from planish.ir.ops import OPS, Slot, aten
from planish.passes.canonicalise import Canonicalise
from planish.passes.check import CheckOptions
from planish.passes.checking.alignment import Alignment
from planish.passes.checking.probes import Probe, make_probe
from planish.passes.checking.regions import describe
from planish.passes.contract import Contract, Exact, Refines
from planish.passes.fold_constants import FoldConstants
from planish.passes.fuse_horizontal import FuseHorizontal
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Correspondence, Pass, PassError, PassResult
from planish.passes.raise_model_ops import RaiseModelOps
from planish.passes.rewrite import rewrite
from planish.testing.mutants import Mutant, mutants, with_mutant
from planish.testing.rules import SeededChooser, registered_rules
from planish.testing.tiny_decoder import tiny_decoder

UNSEEN = (11, 12, 13, 14)
"""Numbers of probes that no check draws: the oracle's inputs."""


Expected = tuple[Probe, list[torch.Tensor] | None]


@dataclass(frozen=True, eq=False)
class Site:
    """Where mutants are planted: a module, what a correct pass made of it, and what that pass promises."""

    source: Module
    result: Module
    correspondence: Correspondence
    contract: Contract = field(default_factory=Exact)
    _right: dict[tuple[int, bool], Expected] = field(default_factory=dict, repr=False)

    def right(self, number: int, *, promote: bool) -> Expected:
        """An unseen probe, and what the correct result computes on it; None where that cannot be computed."""
        key = number, promote
        if key not in self._right:
            probe = make_probe(self.source, self.source.functions["forward"], number, seed=number)
            try:
                results = run(self.result, self.result.functions["forward"], probe, promote=promote)
            except (PlanishError, RuntimeError, IndexError):
                results = None
            self._right[key] = probe, results
        return self._right[key]


Planting = tuple[Site, Mutant]


def planted(site: Site, result: Module) -> Pass:
    """The pass, with another result."""

    class Planted(Pass):
        name: ClassVar[str] = "planted"

        @property
        def contract(self) -> Contract:
            return site.contract

        def apply(self, module: Module, context: Context) -> PassResult:
            return PassResult(result, 1, {"forward": site.correspondence})

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


def planted_in_ops(seeds: range) -> Iterator[Planting]:
    for name in OPS:
        for seed in seeds:
            source = op_module(name, seed)
            result, correspondence = rebuilt(source)
            function = result.functions["forward"]
            node = next(n for n in function.nodes if n.source == f"{name} {seed}")
            site = Site(source, result, correspondence)
            yield from ((site, m) for m in mutants(function, node))


def planted_in_rules(seeds: range) -> Iterator[Planting]:
    for _, rule in registered_rules():
        for seed in seeds:
            source = rule.sample(SeededChooser(seed))
            done = rewrite(source, source.functions["forward"], [rule])
            result = source.with_function(done.function).with_params(done.params)
            site = Site(source, result, done.correspondence)
            old = set(source.functions["forward"].nodes)
            for node in (n for n in done.function.nodes if n not in old):
                yield from ((site, m) for m in mutants(done.function, node))


def planted_in(source: Module, step: Pass) -> Iterator[Planting]:
    """In every node that a registered pass made of a whole model."""
    done = step.apply(source, Context())
    function = done.module.functions["forward"]
    old = set(source.functions["forward"].nodes)
    site = Site(source, done.module, done.correspondence["forward"], step.contract)
    for node in (n for n in function.nodes if n not in old):
        yield from ((site, m) for m in mutants(function, node))


def run(module: Module, function: Function, probe: Probe, *, promote: bool) -> list[torch.Tensor]:
    interpreter = Interpreter(module.with_function(function), promote=promote)
    results = interpreter.run("forward", probe.inputs, probe.states, probe.sizes)
    return [t.to(torch.float64) for t in results.outputs.values()]


def is_fault(site: Site, mutant: Mutant) -> bool:
    """Whether a mutant computes something else where the pass promises something, judged on unseen inputs without any
    derived bound."""
    for number in UNSEEN:
        probe, right = site.right(number, promote=not mutant.rounds)
        if right is None:
            continue
        try:
            wrong = run(site.result, mutant.function, probe, promote=not mutant.rounds)
        except (PlanishError, RuntimeError, IndexError):
            return True
        least = 1e-7
        if mutant.rounds:
            least = 1e-10 if mutant.node.outputs[0].type.dtype == torch.float64 else 1e-4
        for a, b in zip(right, wrong):
            defined = torch.isfinite(a)
            if isinstance(site.contract, Refines):
                promised = probe.inputs[site.contract.where]
                defined = defined & promised.reshape(*promised.shape, *[1] * (a.dim() - promised.dim()))
            scale = float(a[defined].abs().max()) if bool(defined.any()) else 0.0
            off = torch.nan_to_num((a - b).abs()[defined], nan=torch.inf)
            if off.numel() and float(off.max()) > least * max(scale, 1e-3):
                return True
    return False


def caught(site: Site, mutant: Mutant) -> str:
    """How the manager caught a mutant: "region" in the region that holds it, "elsewhere", or "" if it did not."""
    mutated = with_mutant(site.result, mutant)
    verify(mutated)
    try:
        PassManager([planted(site, mutated)], options=CheckOptions(probes=2), reproduce=False).run(site.source)
    except PassError as error:
        forward = site.source.functions["forward"]
        alignment = Alignment(site.source, mutated, forward, mutant.function, site.correspondence)
        made = {v for n in mutant.changed for v in n.outputs}
        regions = [
            r
            for r in alignment.regions()
            if set(mutant.changed) & set(r.result_nodes) or made & {p[1] for p in r.pairs}
        ]
        places = {describe(r.last) for r in regions}
        return "region" if error.diverging in places else "elsewhere"
    return ""


def hunt(plantings: Iterator[Planting], share: int) -> tuple[list[str], Counter[str]]:
    """Plant every `share`-th mutant; returns what survived and the counts. Without a mutant, the manager is content."""
    survivors: list[str] = []
    counts: Counter[str] = Counter()
    content: Site | None = None
    for number, (site, mutant) in enumerate(plantings):
        if number % share:
            continue
        if site is not content and structural_hash(site.source) != structural_hash(site.result):
            PassManager([planted(site, site.result)], options=CheckOptions(probes=2)).run(site.source)
            content = site
        if not is_fault(site, mutant):
            counts[f"{mutant.kind}: equivalent"] += 1
            continue
        how = caught(site, mutant)
        counts[f"{mutant.kind}: planted"] += 1
        counts[f"{mutant.kind}: killed"] += how == "region"
        if how != "region":
            what = f"{mutant.kind} of {mutant.record} ({mutant.detail}) in {describe(mutant.node)}"
            survivors.append(f"{what}: {how or 'alive'}")
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


@pytest.mark.full
def test_mutants_of_rules_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    survivors, counts = hunt(planted_in_rules(range(1)), share=3)
    report(capsys, counts)
    assert not survivors
    assert counts["epsilon lost: planted"] + counts["attribute perturbed: planted"]


@pytest.mark.full
def test_mutants_in_a_decoder_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """Deep inside a model, what a fault does is no larger at the end than what it does to other values on the way."""
    module = tiny_decoder()
    result, correspondence = rebuilt(module)
    function = result.functions["forward"]
    site = Site(module, result, correspondence)
    everywhere = ((site, m) for n in function.nodes for m in mutants(function, n))
    survivors, counts = hunt(everywhere, share=5)
    fused, more = hunt(planted_in(module, FuseHorizontal()), share=1)
    report(capsys, counts + more)
    assert not survivors and not fused


@pytest.mark.nightly
def test_mutants_in_a_raised_checkpoint_are_killed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The faults named first: a weight transposed, a term dropped, a dtype changed, an epsilon lost, a mask shifted."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path)
    traced, _ = PassManager([Canonicalise(), FoldConstants()], check=False).run(import_checkpoint(tmp_path))
    survivors, counts = hunt(planted_in(traced, RaiseModelOps(where="attention_mask")), share=1)
    report(capsys, counts)
    assert not survivors
    for kind in ("operand transposed", "term dropped", "dtype changed", "epsilon lost", "mask shifted by one"):
        assert counts[f"{kind}: planted"], f"no mutant with {kind} was planted"


@pytest.mark.full
def test_all_mutants_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    in_ops, in_rules = hunt(planted_in_ops(range(8)), share=1), hunt(planted_in_rules(range(3)), share=1)
    report(capsys, in_ops[1] + in_rules[1])
    assert not in_ops[0] and not in_rules[0]
