"""The check of regions: both sides fed the source's own values at the cut, in float64, then in the working dtypes.

In float64 the values at the cut are the source's as they are, not rounded: one of them may be computed from another, and
the two must stay consistent. In the working dtypes only the result's side is compared, with its own float64 evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from planish.ir.bounds import Bounded, NoBound, run_bounded, unit_roundoff
from planish.ir.errors import PlanishError
from planish.ir.interpret import Interpreter, default_dtype, promote_dtype, promote_op
from planish.ir.module import Function, Module, Node, Operand, ParamRef, Value
from planish.ir.op import Op
from planish.ir.ops import Aten
from planish.ir.types import TensorType
from planish.passes.checking.alignment import Region
from planish.passes.checking.compare import Comparison, by_float32, in_working_dtype, within_bounds
from planish.passes.checking.outcome import CHECKED, COMPARED, FAILED, SKIPPED, RegionOutcome
from planish.passes.checking.probes import Probe
from planish.passes.pass_base import Carried

Ignore = Callable[[TensorType], "torch.Tensor | None"]
"""For a result's type, a mask of the elements that the contract leaves open, or None."""


Excuse = Callable[[Mapping[Value, torch.Tensor]], bool]
"""Whether the masked elements of some values of the source are irrelevant for what the contract promises."""


def describe(node: Node | None) -> str:
    """A node as messages name it: its operation and where it comes from."""
    if node is None:
        return "its inputs"
    name = f"aten.{node.op.overload}" if isinstance(node.op, Aten) else node.op.name
    return f"{name} ({node.source})" if node.source else name


@dataclass
class Side:
    """One side of a region: how to evaluate its nodes from the values at the cut."""

    module: Module
    nodes: tuple[Node, ...]
    feeds: Mapping[Value, torch.Tensor]
    probe: Probe
    errors: Mapping[Value, torch.Tensor] = field(default_factory=dict)
    cache: dict[tuple[str, torch.dtype | None], Bounded] = field(default_factory=dict)

    def _prepare(self, compute: torch.dtype | None) -> Callable[[Op], Op]:
        sizes = self.probe.sizes
        return lambda op: op.bind(sizes) if compute is None else promote_op(op.bind(sizes), compute)

    def rounded(self) -> Side:
        """The same side, fed with values rounded to their declared dtypes."""
        feeds = {v: t.to(v.type.dtype) for v, t in self.feeds.items()}
        return Side(self.module, self.nodes, feeds, self.probe)

    @staticmethod
    def _tensor(tensor: torch.Tensor, compute: torch.dtype | None) -> torch.Tensor:
        return tensor if compute is None else tensor.to(promote_dtype(tensor.dtype, compute))

    def _read(self, operand: Operand, compute: torch.dtype | None) -> Bounded:
        """A parameter or state."""
        if not isinstance(operand, ParamRef):
            return Bounded(self._tensor(self.probe.states[operand.name], compute))  # type: ignore[union-attr]
        key = (operand.name, compute)
        if key not in self.cache:
            param = self.module.params[operand.name]
            wide = param.wide_value()
            if compute is not None:
                self.cache[key] = Bounded(wide.to(promote_dtype(wide.dtype, compute)))
            else:
                value = param.value()
                self.cache[key] = Bounded(
                    value, (value.to(wide.dtype) - wide).abs() if value.is_floating_point() else None
                )
        return self.cache[key]

    def bounded(self, wanted: list[Operand], compute: torch.dtype | None, coarsest: float = math.inf) -> list[Bounded]:
        """The wanted operands with their bounds; raises NoBound when an operator has none."""
        feeds = {v: Bounded(self._tensor(t, compute), self.errors.get(v)) for v, t in self.feeds.items()}
        # Without a compute dtype the declared ones hold, and with them torch's own default.
        with default_dtype(compute or torch.float32):
            known = run_bounded(self.nodes, feeds, lambda o: self._read(o, compute), self._prepare(compute), coarsest)
        return [known[o] if isinstance(o, Value) else self._read(o, compute) for o in wanted]

    def plain(self, wanted: list[Operand], compute: torch.dtype) -> list[torch.Tensor]:
        """The wanted operands without bounds."""
        interpreter = Interpreter(self.module, compute=compute)
        known = {v: self._tensor(t, compute) for v, t in self.feeds.items()}

        def read(operand: Operand) -> torch.Tensor:
            return known[operand] if isinstance(operand, Value) else self._read(operand, compute).value

        for node in self.nodes:
            results = interpreter.evaluate(
                node, tuple(None if i is None else read(i) for i in node.inputs), self.probe.sizes
            )
            known.update(zip(node.outputs, results))
        return [read(o) for o in wanted]


class RegionCheck:
    """Checks regions of one function on one probe while the source runs in float64: each as soon as its cut is known."""

    def __init__(
        self, before: Module, after: Module, source: Function, regions: list[Region], probe: Probe, *,
        budget: int, ignore: Ignore, working: bool, excuse: Excuse | None = None,
        carried: Mapping[Value, Carried] | None = None,
    ) -> None:  # fmt: skip
        self._carried = carried or {}
        self.before, self.after, self.source, self.probe = before, after, source, probe
        self.budget, self.ignore, self.working, self.excuse = budget, ignore, working, excuse
        self.outcomes: list[RegionOutcome] = []
        self._known: dict[Value, torch.Tensor] = {}
        position = {v: n for n, node in enumerate(source.nodes) for v in node.outputs}
        self._due: dict[int, list[Region]] = {}
        self._readers: dict[Value, int] = {}
        for region in regions:
            self._due.setdefault(max((position.get(v, -1) for v in region.cut), default=-1), []).append(region)
            for value in region.cut:
                self._readers[value] = self._readers.get(value, 0) + 1
        self._position = {node: n for n, node in enumerate(source.nodes)}

    def run(self) -> list[RegionOutcome]:
        """Evaluate the source and check every region on the way."""
        for value in self.source.inputs:
            if value in self._readers:
                self._known[value] = self.probe.inputs[value.name]
        self._check_due(-1)
        if any(number >= 0 for number in self._due):
            Interpreter(self.before, promote=True, observe=self._observe).run(
                self.source.name, self.probe.inputs, self.probe.states, self.probe.sizes
            )
        return self.outcomes

    def _observe(self, node: Node, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(node.outputs, results):
            if value in self._readers:
                self._known[value] = tensor
        self._check_due(self._position[node])

    def _check_due(self, number: int) -> None:
        for region in self._due.get(number, ()):
            begins = describe(region.source_nodes[0] if region.source_nodes else region.last)
            self.outcomes.append(replace(self._check(region), begins=begins))
            for value in region.cut:
                self._readers[value] -= 1
                if not self._readers[value]:
                    del self._known[value]

    def _check(self, region: Region) -> RegionOutcome:
        place = f"{self.source.name}, {describe(region.last)}"
        size = _param_bytes(region, self.before, self.after)
        if size > self.budget:
            sentence = f"its parameters take {size} bytes in float64, more than the budget of {self.budget}"
            return RegionOutcome(place, SKIPPED, sentence=sentence)
        feeds = {v: self._known[v] for v in region.cut}
        images = {v: self._image(v, Bounded(t)) for v, t in feeds.items()}
        fed = {w: images[v].value for v, values in region.cut.items() for w in values}
        errors = {w: images[v].bound() for v, values in region.cut.items() if v in self._carried for w in values}
        source = Side(self.before, region.source_nodes, feeds, self.probe)
        result = Side(self.after, region.result_nodes, fed, self.probe, errors)
        old, new = [p[0] for p in region.pairs], [p[1] for p in region.pairs]
        try:
            try:
                return self._within_bounds(place, region, source, result, old, new)
            except NoBound as reason:
                return self._compared(place, str(reason), source, result, old, new)
        except (PlanishError, RuntimeError, IndexError, ValueError, TypeError) as error:
            return RegionOutcome(
                place, FAILED, math.inf, sentence=f"cannot be evaluated: {' '.join(str(error).split())}"
            )

    def _within_bounds(
        self, place: str, region: Region, source: Side, result: Side, old: list[Operand], new: list[Operand]
    ) -> RegionOutcome:
        a, b = source.bounded(old, torch.float64), result.bounded(new, torch.float64)
        a = [self._image(o, x) for o, x in zip(old, a)]
        found = [within_bounds(x, y, self.ignore(o.type)) for o, x, y in zip(old, a, b)]
        if self.working and not any(f.sentence for f in found) and any(o.type.dtype.is_floating_point for o in old):
            rough, own = source.rounded(), result.rounded()
            exact, coarsest = own.plain(new, torch.float64), _coarsest(region)
            roughly = [self._image(o, x) for o, x in zip(old, rough.bounded(old, None))]
            both = zip(old, roughly, own.bounded(new, None, coarsest), exact)
            found += [in_working_dtype(y, e, x, self.ignore(o.type)) for o, x, y, e in both]
        failed = [(o, f) for o, f in zip([*old, *old], found) if f.sentence]
        used, bound = max(f.used for f in found), max(f.bound for f in found)
        if not failed or self._excused(failed):
            return RegionOutcome(place, CHECKED, 0.0 if failed else used, 0.0 if failed else bound)
        return RegionOutcome(place, FAILED, used, bound, failed[0][1].sentence)

    def _image(self, value: Operand, held: Bounded) -> Bounded:
        """What the result's side holds where the source holds this."""
        carried = self._carried.get(value) if isinstance(value, Value) else None
        if carried is None:
            return held
        wide = held.value.to(torch.float64)
        # Each of so many products and sums rounds once, in float64.
        rounding = carried.terms * 2.0**-52 * wide.abs()
        return Bounded(carried.image(wide), carried.bound(held.bound() + rounding))

    def _excused(self, failed: list[tuple[Operand, Comparison]]) -> bool:
        """Whether what differs is nothing that a promised result depends on."""
        masks = {o: f.offending for o, f in failed if isinstance(o, Value) and f.offending is not None}
        return self.excuse is not None and len(masks) == len(failed) and self.excuse(masks)

    def _compared(
        self, place: str, reason: str, source: Side, result: Side, old: list[Operand], new: list[Operand]
    ) -> RegionOutcome:
        a, b, c = source.plain(old, torch.float64), result.plain(new, torch.float64), source.plain(old, torch.float32)
        a, c = ([self._image(o, Bounded(x)).value for o, x in zip(old, each)] for each in (a, c))
        used = 0.0
        for operand, x, y, rounded in zip(old, a, b, c):
            difference, allowed, sentence = by_float32(x, y, rounded, self.ignore(operand.type))
            if sentence:
                return RegionOutcome(place, FAILED, math.inf, sentence=sentence)
            used = max(used, difference / allowed if allowed else 0.0)
        return RegionOutcome(place, COMPARED, used, sentence=reason)


def _coarsest(region: Region) -> float:
    """The largest unit roundoff among the dtypes with which the source's side computes."""
    types = [old.type for old, _ in region.pairs]
    types += [v.type for n in region.source_nodes for v in n.outputs]
    return max(unit_roundoff(t.dtype) for t in types)


def _param_bytes(region: Region, before: Module, after: Module) -> int:
    """Bytes of a region's parameters in float64, with a bound of the same size for each."""
    total = 0
    for module, nodes in ((before, region.source_nodes), (after, region.result_nodes)):
        for name in {i.name for n in nodes for i in n.inputs if isinstance(i, ParamRef)}:
            total += 16 * math.prod(module.params[name].type.concrete({}))
    return total
