"""From a function's nodes to the steps that compiled code takes: kernels, fused groups, views.

Elementwise operations are fused into whoever reads them, when that costs no repeated work; everything that a kernel
reads lies in memory. All operations that nothing serves are reported in one error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from planish.codegen.aten import tables
from planish.codegen.dims import product
from planish.codegen.family import Kernel, Site
from planish.codegen.pointwise.expression import Pointwise
from planish.codegen.pointwise.kernel import Fused, Leaf
from planish.codegen.pointwise.reduction import FoldRule
from planish.ir import Dense, Function, Node, Operand, ParamRef, StateRef, UnsupportedError, Value
from planish.ir.ops import Aten, Slot
from planish.ir.types import same_dim

Select: TypeAlias = "Callable[[Node, Site], Kernel | list[str]]"
"""The kernel for a node, or why each family that might serve it does not."""


@dataclass(frozen=True, eq=False)
class KernelStep:
    """Nodes computed by one kernel, each but the first a reader of the one before; `kept` are results of nodes before the
    last that others read too."""

    nodes: tuple[Node, ...]
    kernel: Kernel
    kept: tuple[Value, ...] = ()

    @property
    def inputs(self) -> tuple[Operand | None, ...]:
        """What the kernel's operands are."""
        return self.nodes[0].inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the kernel's results are."""
        return (*self.nodes[-1].outputs, *self.kept)


@dataclass(frozen=True, eq=False)
class FusedStep:
    """A group computed by one fused elementwise kernel or, with `fold`, by one reduction."""

    fused: Fused
    fold: FoldRule | None = None


@dataclass(frozen=True, eq=False)
class ViewStep:
    """A node whose result is its operand's memory under another shape."""

    node: Node


Step: TypeAlias = "KernelStep | FusedStep | ViewStep"


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of one function, in order."""

    function: Function
    steps: tuple[Step, ...]


def plan_function(function: Function, site: Site, select: Select) -> Plan:
    """Plan one function.

    Raises:
        UnsupportedError: listing every operation without a kernel, with its place in the source.
    """
    return _Planner(function, site, select).plan()


class _Planner:
    def __init__(self, function: Function, site: Site, select: Select) -> None:
        self.function, self.site, self.select = function, site, select
        self.rules: dict[Node, Pointwise] = {}
        self.folds: dict[Node, FoldRule] = {}
        self.kernels: dict[Node, Kernel] = {}
        self.joined: dict[Node, tuple[Node, ...]] = {}
        self.kept: dict[Node, tuple[Value, ...]] = {}
        self.inlined: set[Value] = set()
        self.nodes = function.live_nodes()
        self.producers = {v: n for n in self.nodes for v in n.outputs}
        self.results = set(function.results)
        self.places = {node: number for number, node in enumerate(self.nodes)}
        self.readers: dict[Operand, list[Node]] = {}
        for node in self.nodes:
            for operand in dict.fromkeys(_operands(node)):
                self.readers.setdefault(operand, []).append(node)

    def plan(self) -> Plan:
        self._classify()
        self._join()
        self.costly: dict[Value, bool] = {}
        for node in self.nodes:
            self.costly.update(dict.fromkeys(node.outputs, self._is_costly(node)))
        for node in reversed(self.nodes):
            if node in self.rules:
                self.inlined.update(v for v in node.outputs if self._may_inline(node, v))
        return Plan(self.function, tuple(step for node in self.nodes for step in self._steps(node)))

    def _classify(self) -> None:
        """Decide for each node what computes it."""
        faults: list[str] = []
        for node in self.nodes:
            kernel = self.select(node, self.site)
            if isinstance(kernel, Kernel):
                self.kernels[node] = kernel
                continue
            rule, fold = tables.pointwise_rule(node), tables.fold_rule(node)
            if rule is not None:
                self.rules[node] = rule
            elif tables.is_unit_view(node):
                self.rules[node] = tables.UNIT_AXES
            elif fold is not None:
                self.folds[node] = fold
            elif not tables.is_view(node):
                faults.append(_fault(node, kernel))
        if faults:
            raise UnsupportedError(
                f"function {self.function.name!r} has operations that the target {self.site.target.name!r} does not "
                f"compile: {'; '.join(faults)}"
            )

    def _join(self) -> None:
        """Give nodes that one kernel computes together to the last of them, from which chains are followed upwards."""
        for node in reversed(self.nodes):
            if node in self.kernels:
                self.joined[node] = (node,)
                while self._join_one(node):
                    pass

    def _join_one(self, node: Node) -> bool:
        """Join what makes the first operand of a node's kernel to it; whether that was possible."""
        kernel, first = self.kernels[node], self.joined[node][0]
        value = first.inputs[0] if kernel.join is not None else None
        producer = self.producers.get(value) if isinstance(value, Value) else None
        if kernel.join is None or not isinstance(value, Value) or producer is None or len(producer.outputs) > 1:
            return False
        if producer not in self.kernels and not self._loses_nothing(producer):
            return False
        # What lives in a state's memory may be overwritten before the last one.
        if any(isinstance(o, StateRef) or o in self.site.layouts for o in (value, *_operands(producer))):
            return False
        others = [reader for reader in self.readers[value] if reader is not first]
        kept = bool(others) or value in self.results
        if any(self.places[reader] < self.places[node] for reader in others):
            return False
        both = kernel.join(producer, kept)
        if both is None:
            return False
        self.kernels[node], self.joined[node] = both, (producer, *self.joined[node])
        self.kept[node] = (*self.kept.get(node, ()), *((value,) if kept else ()))
        self.kernels.pop(producer, None)
        self.rules.pop(producer, None)
        return True

    def _loses_nothing(self, node: Node) -> bool:
        """Whether an elementwise node may be part of a kernel: each of its operands lies in memory for another reader."""
        made = [o for o in _operands(node) if isinstance(o, Value) and self.producers.get(o) in self.rules]
        return node in self.rules and all(any(r not in self.rules for r in self.readers[o]) for o in made)

    def _is_costly(self, node: Node) -> bool:
        """Whether computing a value again costs more than reading it again, operands that may be inlined included."""
        rule = self.rules.get(node)
        if rule is None:
            return False
        return not rule.cheap or any(self.costly.get(o, False) for o in _operands(node) if isinstance(o, Value))

    def _may_inline(self, node: Node, value: Value) -> bool:
        """Whether a value is computed where it is read and never lies in memory."""
        if value in self.results:
            return False
        # What lives in a state's memory may be overwritten between here and the reader.
        if any(isinstance(o, StateRef) or o in self.site.layouts for o in _operands(node)):
            return False
        readers = self.readers.get(value, [])
        if len(readers) > 1 and self.costly[value]:
            return False
        return bool(readers) and all(self._inlines(reader, value) for reader in readers)

    def _inlines(self, reader: Node, value: Value) -> bool:
        if reader in self.folds:
            return True
        rule = self.rules.get(reader)
        if rule is None:
            return False
        if tables.is_unit_view(reader) and reader.output not in self.inlined:
            return False
        if any(reader.inputs[n] is value for n in _whole_operands(reader, rule)):
            return False
        if not self.costly[value]:
            return True
        elements = product(value.type.shape)
        return all(same_dim(product(v.type.shape), elements) or _smaller(v, value) for v in reader.outputs)

    def _steps(self, node: Node) -> Iterable[Step]:
        if node in self.kernels:
            yield KernelStep(self.joined[node], self.kernels[node], self.kept.get(node, ()))
        elif node in self.folds:
            yield FusedStep(self._fused(node, node.outputs[0]), self.folds[node])
        elif node in self.rules:
            for value in node.outputs:
                if value in self.inlined or not (value in self.results or self.readers.get(value)):
                    continue
                if tables.is_unit_view(node):
                    yield ViewStep(node)
                else:
                    yield FusedStep(self._fused(node, value))
        elif tables.is_view(node):
            yield ViewStep(node)

    def _fused(self, last: Node, value: Value) -> Fused:
        """The value's group: its operation and all that is inlined into it, down to what lies in memory."""
        nodes: dict[Node, None] = {}
        leaves: dict[Operand, Leaf] = {}

        def visit(node: Node) -> None:
            for operand in _operands(node):
                if operand in self.inlined:
                    assert isinstance(operand, Value)
                    visit(self.producers[operand])
                elif operand not in leaves:
                    leaves[operand] = self._leaf(operand)
            nodes.setdefault(node, None)

        visit(last)
        return Fused(value, tuple(nodes), leaves, {n: self.rules[n] for n in nodes if n in self.rules})

    def _leaf(self, operand: Operand) -> Leaf:
        if isinstance(operand, ParamRef):
            encoding = self.site.module.params[operand.name].encoding
            return Leaf(operand.type, encoding.dtype if isinstance(encoding, Dense) else operand.type.dtype)
        return Leaf(operand.type, operand.type.dtype)


def _operands(node: Node) -> list[Operand]:
    return [i for i in node.inputs if i is not None]


def _whole_operands(node: Node, rule: Pointwise) -> list[int]:
    """Numbers of the operands that must lie in memory; a rule counts them as arguments."""
    if rule.whole is None:
        return list(range(len(node.inputs)))
    if not isinstance(node.op, Aten):
        return list(rule.whole)
    slots = [node.op.arguments[position] for position in rule.whole]
    return [slot.index for slot in slots if isinstance(slot, Slot)]


def _smaller(result: Value, value: Value) -> bool:
    """Whether a result surely has no more elements than a value."""
    a, b = product(result.type.shape), product(value.type.shape)
    return isinstance(a, int) and isinstance(b, int) and a <= b


def _fault(node: Node, reasons: Kernel | list[str]) -> str:
    what = f"aten.{tables.overload(node)}" if tables.overload(node) else node.op.name
    types = ", ".join(str(t) for t in node.input_types if t is not None)
    where = f" at {node.source}" if node.source else ""
    why = f" ({'; '.join(reasons)})" if isinstance(reasons, list) and reasons else ""
    return f"{what}({types}){where}{why}"


__all__ = ["FusedStep", "KernelStep", "Plan", "Select", "Step", "ViewStep", "plan_function"]
