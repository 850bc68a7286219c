"""Hadamard transforms at run time, in front of what no rotation of parameters reaches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense
from planish.ir.errors import InputError
from planish.ir.hadamard import largest_block
from planish.ir.module import Function, Module, Node, Operand, ParamRef, StateRef, Value
from planish.ir.ops import Attention, CacheAppend, Hadamard, Linear, QuantizedLinear
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.spaces.laws import Family
from planish.ir.spaces.terms import Atom, Product, Term, atoms
from planish.passes.linear_ways import operation
from planish.passes.param_changes import Change, Read, apply_changes
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult

X = 0
WEIGHTS = {Linear.name: 1, QuantizedLinear.name: 2}
"""Operands of linear maps."""
Q, K, V = 0, 1, 2


class OnlineHadamard(Pass):
    """Spreads outliers at run time, where no rotation can be multiplied into the parameters around them.

    before: linear(x, @w)                    after: linear(hadamard(x), @w H^T)
    before: attention(q, k, v)               after: attention(hadamard(q), hadamard(k), v)

    With `inputs` it is done to what linear maps read whose indices nothing rotates but an operation (SpinQuant's R4: the
    hidden layer of an MLP, behind its activation function), with `keys` to queries and keys whose positions are turned or
    whose heads are normed (R3), so that what a cache holds is transformed: run it before derive-programs. What
    `rotation-fusion` can reach is left to it, so run `fold-norm-gains` before. Maps of one input share its transform.
    Blocks are the largest that have a Hadamard matrix. A weight whose name holds a match of one of the regular expressions
    `ignore` keeps its input.

    Source of the method: Liu et al., SpinQuant (2024); Ashkboos et al., QuaRot (2024).
    """

    name: ClassVar[str] = "online-hadamard"
    inputs: bool = True
    keys: bool = False
    ignore: tuple[str, ...] = ()

    def apply(self, module: Module, context: Context) -> PassResult:
        try:
            ignored = [re.compile(pattern) for pattern in self.ignore]
        except re.error as error:
            raise InputError(f"{error.pattern!r} in `ignore` is no regular expression: {error}") from error
        plan = _Plan(module, find_spaces(module))
        for function in module.functions.values():
            for node in function.nodes:
                weight = _weight(node)
                if self.inputs and weight is not None and not any(p.search(_name(weight)) for p in ignored):
                    plan.transform_input(function, node, weight)
                elif self.keys and isinstance(node.op, Attention):
                    plan.transform_keys(function, node)
        refusals = tuple(dict.fromkeys(plan.refusals))
        if not plan.blocks:
            return PassResult(module, 0, refusals=refusals)
        result, parted = apply_changes(module, plan.changes)
        correspondence: dict[str, Correspondence] = {}
        for name, function in module.functions.items():
            rewritten, correspondence[name] = _rewrite(function, plan.blocks, parted)
            result = result.with_function(rewritten)
        attentions = sum(isinstance(node.op, Attention) for node in plan.blocks)
        details = {"inputs transformed": len(plan.blocks) - attentions, "keys transformed": attentions}
        return PassResult(result, len(plan.blocks), correspondence, refusals, details)


@dataclass
class _Plan:
    """What is to be done.

    Attributes:
        blocks: of the nodes whose operands are transformed.
        changes: of their weights.
    """

    module: Module
    spaces: Spaces
    blocks: dict[Node, int] = field(default_factory=dict)
    changes: dict[Read, tuple[Change, ...]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.of_atom: dict[Atom, Space] = {space.atom: space for space in self.spaces.spaces}
        self.transformed = {
            v for f in self.module.functions.values() for n in f.nodes if isinstance(n.op, Hadamard) for v in n.outputs
        }

    def transform_input(self, function: Function, node: Node, weight: Operand) -> None:
        x = node.inputs[X]
        assert x is not None
        term = self.spaces.term(_tensor(x), x.type.rank - 1)
        if x in self.transformed or self._reached(term):
            return
        block, reason = self._block(term, x.type.shape[-1])
        if isinstance(node.op, QuantizedLinear):
            reason = "it is quantised already: transform it before activations are quantised"
        elif not isinstance(weight, ParamRef):
            reason = "the weight is computed at run time"
        elif not isinstance(self.module.params[weight.name].encoding, Dense):
            reason = "the weight is encoded already: transform inputs before weights are quantised"
        if reason:
            self.refusals.append(f"the input of the linear map with {_name(weight)} stays: {reason}")
            return
        self.blocks[node] = block
        self.changes[Read(function.name, node, WEIGHTS[Linear.name])] = (_transformed(block),)

    def transform_keys(self, function: Function, node: Node) -> None:
        q, k, v = (node.inputs[n] for n in (Q, K, V))
        assert q is not None and k is not None
        if k in self.transformed or self._reached(self.spaces.term(_tensor(k), k.type.rank - 1)):
            return
        size = k.type.shape[-1]
        block = largest_block(size) if isinstance(size, int) else 1
        reason = ""
        if isinstance(k, StateRef) or any(k in n.outputs and isinstance(n.op, CacheAppend) for n in function.nodes):
            reason = "they come from a state, which would be transformed as a whole: run this before derive-programs"
        elif k is v:
            reason = "the values are the same tensor"
        elif block == 1:
            reason = f"there is no Hadamard matrix of a size that divides {size}"
        if reason:
            place = f" at {node.source}" if node.source else ""
            self.refusals.append(f"the keys of the attention{place} stay: {reason}")
            return
        self.blocks[node] = block

    def _reached(self, term: Term) -> bool:
        """Whether rotations of parameters mix the indices: some of each product's, and those of every part of a sum."""
        if isinstance(term, Atom):
            return self.of_atom[term].family >= Family.ORTHOGONAL
        if isinstance(term, Product):
            return any(self._reached(factor) for factor in term.factors)
        return all(self._reached(part) for part in term.parts)

    def _block(self, term: Term, size: object) -> tuple[int, str]:
        """The largest block, and why there is none to be used; the latter is empty otherwise."""
        for space in (self.of_atom[atom] for atom in atoms(term)):
            if space.family == Family.FIXED:
                limit = next((each for each in space.limits if each.node is not None), space.limits[0])
                place = operation(limit.node) if limit.node is not None else "the module's border"
                return 1, f"{place}: {limit.sentence}"
        block = largest_block(size) if isinstance(size, int) else 1
        return block, "" if block > 1 else f"there is no Hadamard matrix of a size that divides {size}"


def _rewrite(
    function: Function, blocks: Mapping[Node, int], parted: Mapping[Read, ParamRef]
) -> tuple[Function, Correspondence]:
    copy = Rewriter(function)
    made: dict[Operand, Value] = {}
    for node in function.nodes:
        if node not in blocks:
            copy.keep(node)
            continue
        operands = [
            parted.get(Read(function.name, node, number), operand) for number, operand in enumerate(copy.operands(node))
        ]
        for number in (Q, K) if isinstance(node.op, Attention) else (X,):
            x = operands[number]
            assert x is not None
            if x not in made:
                made[x] = copy.emit(Hadamard(blocks[node]), x, source=node.source)
            operands[number] = made[x]
        new = copy.emit(node.op, *operands, source=node.source, name=node.output.name)
        copy.replace(node.output, new)
    return copy.finish_like(), copy.correspondence


def _transformed(block: int) -> Change:
    """Of a weight, along its input axis."""

    def make(weight: torch.Tensor) -> torch.Tensor:
        return Hadamard(block).evaluate(weight)[0]

    return Change(("hadamard", block), make, frozenset((1,)))


def _weight(node: Node) -> Operand | None:
    """The weight of a linear map."""
    return node.inputs[WEIGHTS[node.op.name]] if node.op.name in WEIGHTS else None


def _tensor(operand: Operand) -> Value | tuple[str, str]:
    if isinstance(operand, Value):
        return operand
    return ("param" if isinstance(operand, ParamRef) else "state", operand.name)


def _name(operand: Operand) -> str:
    return str(operand.name) if isinstance(operand, (ParamRef, StateRef)) else ""
