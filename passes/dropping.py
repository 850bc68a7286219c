"""Indices of spaces taken away: parameters and states are cut, and every operation that has them does without."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense
from planish.ir.errors import InputError, IRError
from planish.ir.module import Function, Module, Node, Operand, ParamRef, State, StateRef
from planish.ir.ops import aten
from planish.ir.ops.aten import Slot
from planish.ir.params import Computed, Param, Storage
from planish.ir.spaces.analysis import Space, Spaces, Tensor
from planish.ir.spaces.laws import Family
from planish.ir.spaces.narrowing import Cut, Narrowed, renumber
from planish.ir.spaces.taking import Staying, mask, size_left, touched
from planish.ir.spaces.terms import Term
from planish.ir.types import TensorType
from planish.passes.linear_ways import operation
from planish.passes.param_changes import Change, Read, apply_changes, reading, taken, unused
from planish.passes.pass_base import Correspondence
from planish.passes.rewrite import compose


@dataclass(frozen=True, eq=False)
class Dropped:
    """A module without some indices, and which values of the old one are in the new."""

    module: Module
    correspondence: Mapping[str, Correspondence]


def keeps(module: Module, space: Space, outputs: Container[str] = ()) -> str:
    """Why no index of a space can be taken away; empty where some can be. That it comes out as one of `outputs` is none."""
    if not isinstance(space.size, int):
        return f"how many indices it has, {space.size}, depends on the inputs"
    picking = {ruling.node for ruling in space.rulings if ruling.law.reads is not None}
    fixed = [
        limit
        for limit in space.limits
        if limit.family == Family.FIXED and limit.node not in picking and not (limit.output and limit.output in outputs)
    ]
    if fixed:
        limit = next((each for each in fixed if each.node is not None), fixed[0])
        place = operation(limit.node) if limit.node is not None else "the module's border"
        return f"{place}: {limit.sentence}"
    for ruling in space.rulings:
        if ruling.law.reads is not None and not isinstance(ruling.tensors[ruling.law.reads], tuple):
            return f"{operation(ruling.node)}: it picks among them at run time"
        if ruling.law.silent is None:
            return f"{operation(ruling.node)}: what it makes of the others depends on how many there are"
    encoded = next((n for n, _ in space.parameters if not isinstance(module.params[n].encoding, Dense)), None)
    return "" if encoded is None else f"{encoded} is encoded already: drop indices before weights are quantised"


def drop(module: Module, spaces: Spaces, staying: Staying) -> Dropped:
    """The module without the indices that do not stay, as if they were zero in everything that reads them.

    Means and lengths that norms take are still over all indices, softmax scales are what they were.

    Args:
        staying: by the atom of each space that loses some (`keeps` allows it) which stay, at least one.

    Raises:
        InputError: when an operation cannot do without them, with its name.
    """
    return _Dropping(module, spaces, staying).run()


class _Dropping:
    def __init__(self, module: Module, spaces: Spaces, staying: Staying) -> None:
        self._module, self._spaces, self._staying = module, spaces, staying
        self._params = {name: self._param(param) for name, param in module.params.items()}
        self._states = {name: self._state(state) for name, state in module.states.items()}
        self._changes: dict[Read, tuple[Change, ...]] = {}

    def run(self) -> Dropped:
        rewritten = {name: self._function(function) for name, function in self._module.functions.items()}
        functions = {name: function for name, (function, _) in rewritten.items()}
        module = Module(functions, self._params, self._states, self._module.metadata)
        correspondence = {name: same for name, (_, same) in rewritten.items()}
        if self._changes:
            module, parted = apply_changes(module, self._changes)
            if parted:
                module, moved = reading(module, parted)
                correspondence = {name: compose(step, moved[name]) for name, step in correspondence.items()}
        return Dropped(module, correspondence)

    def _terms(self, tensor: Tensor) -> tuple[Term, ...]:
        """None of its indices go where no function has the tensor."""
        try:
            return self._spaces.terms(tensor)
        except KeyError:
            return ()

    def _type(self, type: TensorType, terms: tuple[Term, ...]) -> TensorType:
        if not any(touched(term, self._staying) for term in terms):
            return type
        return type.with_shape(
            size_left(t, self._staying) if touched(t, self._staying) else d for t, d in zip(terms, type.shape)
        )

    def _param(self, param: Param) -> Param:
        terms = self._terms(("param", param.name))
        if not any(touched(term, self._staying) for term in terms):
            return param
        masks = (mask(term, self._staying) for term in terms)
        # Dense (`keeps`), and what stays is what it was: it is stored in the same dtype.
        return taken(param, tuple(None if of is None else of.nonzero().flatten() for of in masks))

    def _state(self, state: State) -> State:
        terms = self._terms(("state", state.name))
        if not any(touched(term, self._staying) for term in terms):
            return state
        if state.encoding is not None and touched(terms[-1], self._staying):
            raise InputError(
                f"state {state.name!r} is encoded row by row ({state.encoding}), and its rows would lose elements: drop "
                f"indices before caches are quantised"
            )
        return State(state.name, self._type(state.type, terms), state.encoding)

    def _function(self, function: Function) -> tuple[Function, Correspondence]:
        copy = Rewriter(function)
        for node in function.nodes:
            indexing = self._spaces.indexing(node)
            terms = [*(t for of in indexing.operands for t in of or ()), *(t for of in indexing.results for t in of)]
            if any(touched(term, self._staying) for term in terms):
                self._narrow(copy, node)
            else:
                copy.keep(node)
        if all(new is old for old, new in zip(function.nodes, copy.nodes)) and len(copy.nodes) == len(function.nodes):
            return function, {value: value for value in function.values}
        updates = {name: self._operand(copy, operand) for name, operand in function.updates.items()}
        outputs = [copy.operand(operand) for operand in function.outputs]
        return copy.finish(outputs, function.output_names, updates), copy.correspondence

    def _operand(self, copy: Rewriter, operand: Operand) -> Operand:
        if isinstance(operand, ParamRef):
            return ParamRef(operand.name, self._params[operand.name].type)
        if isinstance(operand, StateRef):
            return StateRef(operand.name, self._states[operand.name].type)
        return copy.operand(operand)

    def _narrow(self, copy: Rewriter, node: Node) -> None:
        """A node that has indices which go."""
        indexing = self._spaces.indexing(node)
        operands: list[Operand | None] = [None if o is None else self._operand(copy, o) for o in node.inputs]
        results = tuple(
            self._type(value.type, terms) for value, terms in zip(node.outputs, indexing.results, strict=True)
        )
        try:
            kept = tuple(
                None if terms is None else tuple(mask(t, self._staying) for t in terms) for terms in indexing.operands
            )
            after = tuple(None if o is None else o.type for o in operands)
            narrowed = node.op.narrowed(Cut(kept, node.input_types, after, results))
            for number in narrowed.gains:
                operands[number] = operands[number] or self._gain(narrowed.gains[number], after[0])
            made = copy.node(narrowed.op, *operands, source=node.source, names=[v.name for v in node.outputs])
            if tuple(v.type for v in made.outputs) != results:
                raise IRError(f"it would give {', '.join(str(v.type) for v in made.outputs)}")
        except IRError as error:
            raise InputError(f"{operation(node)} cannot do without the indices: {error}") from error
        for number, gain in narrowed.gains.items():
            if node.inputs[number] is not None:
                self._changes[Read(copy.name, made, number)] = (Change(("gain", gain), partial(torch.mul, gain)),)
        for number, staying in narrowed.renumbered.items():
            key = ("renumber", tuple(staying.tolist()))
            self._changes[Read(copy.name, made, number)] = (Change(key, partial(renumber, staying=staying)),)
        self._replace(copy, node, made, narrowed)

    def _replace(self, copy: Rewriter, node: Node, made: Node, narrowed: Narrowed) -> None:
        for number, (old, new) in enumerate(zip(node.outputs, made.outputs, strict=True)):
            scaled = number == 0 and narrowed.factor != 1
            stands = copy.emit(aten("mul.Scalar", Slot(0), narrowed.factor), new, name=old.name) if scaled else new
            copy.replace(old, stands, same=new.type == old.type)

    def _gain(self, gain: float, like: TensorType | None) -> ParamRef:
        """A vector of a number, as long as the last axis of a type; one parameter for all that want the same."""
        assert like is not None
        type = like.with_shape(like.shape[-1:])
        wanted = Computed(_Full(type, gain), wide=_Full(type.with_dtype(torch.float64), gain).wide)
        for name, param in self._params.items():
            if isinstance(param.source, Computed) and param.source.compute == wanted.compute:
                return ParamRef(name, type)
        name = unused("gain", self._params)
        self._params[name] = Param(name, type, Dense(type.dtype), wanted)
        return ParamRef(name, type)


@dataclass(frozen=True)
class _Full:
    """A vector of one number."""

    type: TensorType
    number: float

    def __call__(self) -> Storage:
        return {"values": self.wide().to(self.type.dtype)}

    def wide(self) -> torch.Tensor:
        return torch.full(self.type.concrete({}), self.number, dtype=torch.float64)
