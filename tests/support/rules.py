"""Rules of the registered passes, and programs drawn from a rule: an instance of its left side in a random context."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TypeVar

import torch

from planish.ir import Builder, Chooser, Function, Module, Operand, Rewriter, Value
from planish.ir.ops import Slot, aten
from planish.passes.freeze_gates import FreezeGates
from planish.passes.pass_base import Context
from planish.passes.registry import PASSES, pass_class
from planish.passes.rewrite import RewritePass, Rule

T = TypeVar("T")


class SeededChooser:
    """A `Chooser` on a seed, for counting how often something happens."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def choice(self, options: list[T]) -> T:
        return self._random.choice(options)

    def boolean(self) -> bool:
        return self._random.random() < 0.5


def registered_rules() -> Iterator[tuple[str, Rule]]:
    """Every rule of every registered pass that is made of rules, with the pass's name."""
    for name in PASSES:
        found = pass_class(name)
        if issubclass(found, (RewritePass, FreezeGates)):
            yield from ((name, rule) for rule in found().rules(Context()))


def directed(choose: Chooser, rule: Rule) -> Module:
    """A module with an instance of the rule's left side, in a random context: other operations before and after, the
    instance a second time, an inner value read from outside, nodes that nothing reads."""
    module = rule.sample(choose)
    function = module.functions["forward"]
    if choose.boolean():
        function = _after(choose, function)
    if choose.boolean():
        function = _twice(function)
    if choose.integer(0, 5) == 0:
        function = _leaking(choose, function)
    if choose.boolean():
        function = _with_unused(choose, function)
    return module.with_function(function)


def _signed(value: Operand) -> bool:
    return value.type.dtype.is_floating_point


def _after(choose: Chooser, function: Function) -> Function:
    """With an operation on some outputs."""
    rewriter = Rewriter(function)
    for node in function.nodes:
        rewriter.keep(node)
    outputs = []
    for output in (rewriter.operand(o) for o in function.outputs):
        apply = _signed(output) and choose.boolean()
        outputs.append(rewriter.emit(aten("neg.default", Slot(0)), output) if apply else output)
    return rewriter.finish(outputs, function.output_names)


def _twice(function: Function) -> Function:
    """Everything a second time on the same inputs, with outputs of its own."""
    builder = Builder(function.name)
    builder.inputs = list(function.inputs)
    builder.nodes = list(function.nodes)
    known: dict[Operand, Operand] = {}
    for node in function.nodes:
        copy = builder.node(node.op, *(None if i is None else known.get(i, i) for i in node.inputs))
        known.update(zip(node.outputs, copy.outputs))
    outputs = [*function.outputs, *(known.get(o, o) for o in function.outputs)]
    return builder.finish(outputs, [*function.output_names, *(f"{n}.again" for n in function.output_names)])


def _leaking(choose: Chooser, function: Function) -> Function:
    """With some inner value among the outputs."""
    value = choose.choice([v for n in function.nodes for v in n.outputs])
    names = (*function.output_names, "leak")
    return Function(function.name, function.inputs, function.nodes, (*function.outputs, value), names)


def _with_unused(choose: Chooser, function: Function) -> Function:
    """With a node that nothing reads, on an input or an output: on neither does it stand in a rule's way."""
    candidates: list[Value] = [v for v in (*function.inputs, *function.outputs) if isinstance(v, Value) and _signed(v)]
    if not candidates:
        return function
    builder = Builder(function.name)
    builder.inputs, builder.nodes = list(function.inputs), list(function.nodes)
    builder.emit(aten("neg.default", Slot(0)), choose.choice(candidates))
    return builder.finish(function.outputs, function.output_names)


def probe_tensor(kind: torch.dtype) -> torch.Tensor:
    """The values on which rewrites most often go wrong: both zeros, infinities, NaN, and ordinary ones."""
    return torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.5, -2.0]).to(kind)
