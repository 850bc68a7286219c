"""Constant folding: what depends on parameters alone is computed once, when the parameter it becomes is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense
from planish.ir.interpret import Interpreter
from planish.ir.module import Function, Module, Node, Operand, ParamRef, Value
from planish.ir.params import Computed, Param, Storage
from planish.ir.types import TensorType
from planish.passes.graph import is_deterministic
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult


@dataclass(frozen=True, eq=False)
class Folded:
    """The storage of a folded parameter: a function without inputs, evaluated each time it is read."""

    module: Module
    function: Function

    def __call__(self) -> Storage:
        return {"values": self._run(promote=False)}

    def wide(self) -> torch.Tensor:
        """The same computation in float64."""
        return self._run(promote=True)

    def _run(self, *, promote: bool) -> torch.Tensor:
        return Interpreter(self.module, promote=promote).run(self.function.name, [])[0].contiguous()


def nbytes(type: TensorType) -> int:
    """Bytes of a tensor of fixed shape."""
    return math.prod(type.concrete({})) * type.dtype.itemsize


class FoldConstants(Pass):
    """Replaces what is computed from parameters alone by new parameters, computed lazily from the old ones.

    before: y = x * exp(@log_scale)      after: y = x * @folded      (folded = exp(log_scale), at reading)

    A result is folded if it takes at most `limit_bytes`, or no more than the parameters it is computed from; a larger
    one (an expanded mask, a weight repeated for every head) stays computed. Values of symbolic shape are never folded.
    """

    name: ClassVar[str] = "fold-constants"
    limit_bytes: int = 1 << 20

    def apply(self, module: Module, context: Context) -> PassResult:
        result, folded = module, 0
        correspondence: dict[str, Correspondence] = {}
        for name, function in module.functions.items():
            constant = self._constant_nodes(function)
            if not constant:
                continue
            rewriter, params = _fold(result, function, constant)
            if not params:
                continue
            result = result.with_function(rewriter.finish_like()).with_params(params)
            correspondence[name] = rewriter.correspondence
            folded += len(params)
        return PassResult(result, folded, correspondence)

    def _constant_nodes(self, function: Function) -> set[Node]:
        """Nodes that read nothing but parameters and other such nodes, and whose results are small enough."""
        constant: set[Node] = set()
        made: dict[Value, int] = {}
        for node in function.nodes:
            reads: list[Operand] = [i for i in node.inputs if i is not None]
            fixed = is_deterministic(node.op) and not any(v.type.symbols for v in node.outputs)
            if not fixed or not all(isinstance(i, ParamRef) or i in made for i in reads):
                continue
            # The bytes of parameters behind a value, counted once for each path: generous, but never less.
            behind = sum(made[i] if isinstance(i, Value) else nbytes(i.type) for i in reads)
            if all(nbytes(v.type) <= max(self.limit_bytes, behind) for v in node.outputs):
                constant.add(node)
                made.update(dict.fromkeys(node.outputs, behind))
        return constant


def _fold(module: Module, function: Function, constant: set[Node]) -> tuple[Rewriter, list[Param]]:
    """A copy in which constants read by other nodes are parameters. Results of the function stay computed by a node."""
    producers = function.producers()
    results = {r for r in function.results if isinstance(r, Value)}
    rewriter = Rewriter(function)
    params: dict[Value, Param] = {}
    for node in function.nodes:
        if node in constant and results.isdisjoint(node.outputs):
            continue
        for operand in node.inputs:
            if isinstance(operand, Value) and producers.get(operand) in constant and operand not in params:
                params[operand] = _param(module, function, operand, producers, {p.name for p in params.values()})
                rewriter.replace(operand, ParamRef(params[operand].name, operand.type))
        rewriter.keep(node)
    return rewriter, list(params.values())


def _param(module: Module, function: Function, value: Value, producers: dict[Value, Node], taken: set[str]) -> Param:
    names = (f"{function.name}.folded.{number}" for number in count())
    name = next(n for n in names if n not in module.params and n not in taken)
    nodes = _behind(value, producers)
    reads = {r.name for n in nodes for r in n.inputs if isinstance(r, ParamRef)}
    slice_of = Function("constant", (), nodes, (value,), ("value",))
    part = Module({"constant": slice_of}, {n: module.params[n] for n in sorted(reads)})
    compute = Folded(part, slice_of)
    return Param(name, value.type, Dense(value.type.dtype), Computed(compute, wide=compute.wide))


def _behind(value: Value, producers: dict[Value, Node]) -> tuple[Node, ...]:
    """The nodes that compute a value, in order."""
    order: dict[Node, None] = {}

    def visit(wanted: Sequence[object]) -> None:
        stack = [(producers[v], False) for v in wanted if isinstance(v, Value)]
        while stack:
            node, ready = stack.pop()
            if ready:
                order[node] = None
            elif node not in order:
                stack.append((node, True))
                stack += [(producers[i], False) for i in node.inputs if isinstance(i, Value)]

    visit([value])
    return tuple(order)
