"""Gains and shifts of norms, folded into the linear maps that read them; means of layer norms, into what writes their input.

Which axis of which parameter takes them follows from the laws that operations declare: wherever a result of a norm goes, the
indices of its last axis are followed until every way ends in a parameter that contracts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense
from planish.ir.module import Function, Module, Node, ParamRef, Value
from planish.ir.ops import LayerNorm, Linear, RmsNorm
from planish.ir.params import Computed, Param, Storage
from planish.ir.types import TensorType
from planish.passes.graph import Graph
from planish.passes.linear_ways import Stays, Ways, operation, readers_of, sum_around
from planish.passes.param_changes import Change, Read, apply_changes, changed
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult

GAIN, SHIFT = 1, 2
"""Operands of a norm."""


class FoldNormGains(Pass):
    """Leaves norms nothing but the division by the root of a mean square, so that their input may be rotated.

    before: linear(rms_norm(x, @gain), @w)        after: linear(rms_norm(x), @w * gain)
    before: linear(layer_norm(x, @gain, @shift), @w, @b)
    after:  linear(layer_norm(x), @w * gain, @b + @w shift)
    before: layer_norm(x)                         after: rms_norm(x), the mean taken from all that is added up in x

    A gain stays whose norm is read by anything but linear maps with parameters of their own. The mean of a layer norm goes
    where its input is a sum of such maps' results, rows of tables and biases, and nothing but layer norms reads that. A
    parameter that is read elsewhere too, such as a table of embeddings that is also the output head, becomes two.

    Source of the method: Ashkboos et al., SliceGPT (2024), section 3.2; gains as in Liu et al., SpinQuant (2024).
    """

    name: ClassVar[str] = "fold-norm-gains"

    def apply(self, module: Module, context: Context) -> PassResult:
        plan = _Plan(module)
        for function in module.functions.values():
            graph = Graph(module, function)
            plan.fold_gains(graph)
            plan.fold_means(graph)
        refusals = tuple(dict.fromkeys(plan.refusals))
        if not plan.norms:
            return PassResult(module, 0, refusals=refusals)
        result, parted = apply_changes(module, plan.changes)
        result = result.with_params(plan.shifts.values())
        correspondence: dict[str, Correspondence] = {}
        for name, function in module.functions.items():
            rewritten, correspondence[name] = plan.rewrite(function, parted)
            result = result.with_function(rewritten)
        details = {"gains folded": plan.gains, "means folded": plan.means}
        return PassResult(result, plan.gains + plan.means, correspondence, refusals, details)


@dataclass
class _Plan:
    """What is to be done to a module, told by the nodes of its functions.

    Attributes:
        norms: those that lose something, and what they become; the operands that they keep.
        changes: of parameters, by where they are read.
        shifts: for linear maps without a bias, the one that they get.
        different: values that will hold something else.
    """

    module: Module
    norms: dict[Node, RmsNorm | LayerNorm] = field(default_factory=dict)
    bare: set[Node] = field(default_factory=set)
    changes: dict[Read, tuple[Change, ...]] = field(default_factory=dict)
    shifts: dict[Node, Param] = field(default_factory=dict)
    different: set[Value] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    gains: int = 0
    means: int = 0

    def fold_gains(self, graph: Graph) -> None:
        for node in graph.function.nodes:
            gain, shift = _affine(node)
            if gain is None and shift is None:
                continue
            try:
                ways = readers_of(graph, node.output, node.output.type.rank - 1)
                self._fold_gain(node, ways)
            except Stays as reason:
                self._refuse(node, "gain", reason)

    def _fold_gain(self, node: Node, ways: Ways) -> None:
        gain, shift = _affine(node)
        if any(o is not None and not isinstance(o, ParamRef) for o in (gain, shift)):
            raise Stays("it is computed at run time")
        for read in ways.contracted:
            self._require_floats(read)
        biases = [self._shifted(read, ways, shift) for read in ways.contracted] if isinstance(shift, ParamRef) else []
        if isinstance(gain, ParamRef):
            param = self.module.params[gain.name]
            for read, axis in ways.contracted.items():
                whole = frozenset((axis,))
                self._change(read, Change(("times", gain.name, axis), _times(param, axis), whole))
        for read, change in biases:
            if isinstance(change, Param):
                self.shifts[read.node] = change
            else:
                self._change(read, change)
        self.norms[node] = node.op  # type: ignore[assignment]
        self.bare.add(node)
        self.different |= set(ways.values)
        self.gains += 1

    def _shifted(self, read: Read, ways: Ways, shift: ParamRef) -> tuple[Read, Change | Param]:
        """What the bias of a linear map becomes when its weight meets a shift."""
        node = read.node
        if not isinstance(node.op, Linear) or node.inputs[0] not in ways.rows:
            raise Stays(f"{operation(node)} has no bias that could take the shift")
        _, weight, bias = node.inputs
        assert isinstance(weight, ParamRef)
        product = _Product(self.module.params[weight.name], self.module.params[shift.name])
        if bias is None:
            type = TensorType(weight.type.dtype, weight.type.shape[:1])
            name = f"{weight.name}.{shift.name}"
            return read, Param(name, type, Dense(type.dtype), Computed(product, wide=product.wide))
        if not isinstance(bias, ParamRef):
            raise Stays(f"{operation(node)} has a bias that is computed at run time")
        of_bias = Read(read.function, node, 2)
        self._require_floats(of_bias)
        return of_bias, Change(("plus", weight.name, shift.name), lambda value: value + product.wide())

    def fold_means(self, graph: Graph) -> None:
        seen: set[Node] = set()
        for node in graph.function.nodes:
            x = node.inputs[0] if isinstance(node.op, LayerNorm) else None
            if not isinstance(x, Value) or node in seen:
                continue
            try:
                ways = sum_around(graph, x, x.type.rank - 1)
                seen |= set(ways.norms)
                self._fold_mean(ways)
            except Stays as reason:
                self._refuse(node, "mean", reason)

    def _fold_mean(self, ways: Ways) -> None:
        norms = [norm for norm in ways.norms if norm in self.bare or _affine(norm)[1] is None]
        if not norms:
            raise Stays("its shift stays")
        for read in ways.added:
            self._require_floats(read)
        for read, axis in ways.added.items():
            self._change(read, _centred(axis))
            if read.node in self.shifts and read.operand == 1:
                # The bias that this map gets.
                shift = self.shifts[read.node]
                self.shifts[read.node] = changed(shift, shift.name, (_centred(0),))
        for norm in norms:
            assert isinstance(norm.op, LayerNorm)
            self.norms[norm] = RmsNorm(norm.op.eps)
        self.different |= set(ways.values)
        self.means += len(norms)

    def _change(self, read: Read, change: Change) -> None:
        self.changes[read] = (*self.changes.get(read, ()), change)

    def _require_floats(self, read: Read) -> None:
        operand = read.node.inputs[read.operand]
        assert isinstance(operand, ParamRef)
        param = self.module.params[operand.name]
        if not isinstance(param.encoding, Dense):
            raise Stays(f"{param.name} is encoded as {param.encoding} already: fold before weights are quantised")

    def _refuse(self, node: Node, what: str, reason: Stays) -> None:
        place = f" ({node.source})" if node.source else ""
        self.refusals.append(f"the {what} of a {node.op.name}{place} stays: {reason}")

    def rewrite(self, function: Function, parted: dict[Read, ParamRef]) -> tuple[Function, Correspondence]:
        copy = Rewriter(function)
        for node in function.nodes:
            operands = [
                parted.get(Read(function.name, node, number), operand)
                for number, operand in enumerate(copy.operands(node))
            ]
            op = self.norms.get(node, node.op)
            if node in self.bare:
                operands = operands[:1]
            elif node in self.norms:
                operands = operands[:SHIFT]
            elif node in self.shifts:
                operands[2] = ParamRef(self.shifts[node].name, self.shifts[node].type)
            if (
                op is node.op
                and all(a is b for a, b in zip(operands, node.inputs, strict=False))
                and node not in self.bare
            ):
                copy.keep(node)
                continue
            operands += [None] * (len(node.inputs) - len(operands) if op is node.op else 2 - len(operands))
            made = copy.node(op, *operands, source=node.source, names=[v.name for v in node.outputs])
            for old, new in zip(node.outputs, made.outputs, strict=True):
                copy.replace(old, new)
        same = {v: copy.operand(v) for v in function.values if v not in self.different}
        return copy.finish_like(), same


@dataclass(frozen=True, eq=False)
class _Product:
    """What a weight [out, in] makes of a shift [in]."""

    weight: Param
    shift: Param

    def __call__(self) -> Storage:
        return {"values": self.wide().to(self.weight.type.dtype)}

    def wide(self) -> torch.Tensor:
        product: torch.Tensor = self.weight.wide_value() @ self.shift.wide_value()
        return product


def _affine(node: Node) -> tuple[object, object]:
    """The gain and the shift of a norm, None for what it has not; of other nodes both."""
    if not isinstance(node.op, (RmsNorm, LayerNorm)):
        return None, None
    gain, shift, *_ = (*node.inputs[GAIN:], None, None)
    return gain, shift


def _times(gain: Param, axis: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(value: torch.Tensor) -> torch.Tensor:
        return value * gain.wide_value().reshape([-1 if n == axis else 1 for n in range(value.ndim)])

    return make


def _centred(axis: int) -> Change:
    return Change(("centre", axis), lambda value: value - value.mean(axis, keepdim=True), frozenset((axis,)))
