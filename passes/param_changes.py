"""Changes of parameters, by where they are read: what two reads want differently makes two parameters of one."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Dense
from planish.ir.module import Module, Node, Operand, ParamRef, Value
from planish.ir.params import Computed, Param, Storage


@dataclass(frozen=True, eq=False)
class _Taken:
    """The storage of some indices of a dense parameter, axis by axis, read from the old one each time."""

    old: Param
    kept: tuple[torch.Tensor | None, ...]

    def __call__(self) -> Storage:
        return {field: self._of(tensor).contiguous() for field, tensor in self.old.storage().items()}

    def wide(self) -> torch.Tensor:
        return self._of(self.old.wide_value())

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        for axis, indices in enumerate(self.kept):
            tensor = tensor if indices is None else tensor.index_select(axis, indices)
        return tensor


def taken(param: Param, kept: tuple[torch.Tensor | None, ...]) -> Param:
    """A dense parameter with some of its indices: for each axis i64 [how many], None for all. It keeps its name and dtype."""
    compute = _Taken(param, kept)
    type = param.type.with_shape(d if of is None else len(of) for d, of in zip(param.type.shape, kept))
    return Param(param.name, type, param.encoding, Computed(compute, wide=compute.wide))


@dataclass(frozen=True)
class Read:
    """One operand of one node of one function."""

    function: str
    node: Node
    operand: int


@dataclass(frozen=True)
class Change:
    """What a parameter becomes.

    Attributes:
        key: two changes of one key are the same.
        make: from the old value to the new one, both float64 and of the same shape.
        whole: the axes of which `make` needs all indices; it takes a part of any other as well. None when it takes no part.
    """

    key: tuple[object, ...]
    make: Callable[[torch.Tensor], torch.Tensor] = field(compare=False)
    whole: frozenset[int] | None = field(default=None, compare=False)


Changes: TypeAlias = "Mapping[Read, tuple[Change, ...]]"
"""For reads of parameters, the changes one after the other."""


PART_ELEMENTS = 1 << 24
"""How much of a parameter is computed at once where it can be done in parts: 128 MiB of float64."""
Part: TypeAlias = "Callable[[int, int], torch.Tensor]"
"""From the first index and how many to that part of a parameter, float64."""


@dataclass(frozen=True, eq=False)
class _Changed:
    """The storage of a changed parameter, computed in float64 each time it is read, part after part where it is large."""

    old: Param
    changes: tuple[Change, ...]

    def __call__(self) -> Storage:
        type = self.old.type
        axis = next((n for n in range(type.rank) if self._parts_along(n)), None)
        if axis is None or self.old.elements <= PART_ELEMENTS:
            return {"values": self.wide().to(type.dtype).contiguous()}
        shape = type.concrete({})
        values, part = torch.empty(shape, dtype=type.dtype), self.part(axis)
        step = max(1, PART_ELEMENTS * shape[axis] // self.old.elements)
        for start in range(0, shape[axis], step):
            count = min(step, shape[axis] - start)
            values.narrow(axis, start, count).copy_(part(start, count))
        return {"values": values}

    def wide(self) -> torch.Tensor:
        return self._made(self.old.wide_value())

    def part(self, axis: int) -> Part:
        """Reads parts along an axis; the stored tensors stay open as long as it is kept."""
        source, dense = self.old.source, isinstance(self.old.encoding, Dense)
        if isinstance(source, Computed):
            inner = source.compute
            if not isinstance(inner, _Changed) or not inner._parts_along(axis):
                whole = self.old.wide_value()
                return lambda start, count: self._made(whole.narrow(axis, start, count))
            of_inner = inner.part(axis)
            return lambda start, count: self._made(of_inner(start, count))
        stored = self.old.storage()["values"] if dense else self.old.wide_value()
        return lambda start, count: self._made(stored.narrow(axis, start, count).double())

    def _parts_along(self, axis: int) -> bool:
        return all(change.whole is not None and axis not in change.whole for change in self.changes)

    def _made(self, value: torch.Tensor) -> torch.Tensor:
        for change in self.changes:
            value = change.make(value)
        return value


def changed(param: Param, name: str, changes: tuple[Change, ...]) -> Param:
    """A parameter under a name, with changes made to its value; read anew whenever it is read."""
    compute = _Changed(param, changes)
    return Param(name, param.type, Dense(param.type.dtype), Computed(compute, wide=compute.wide))


def reads(module: Module) -> Iterator[tuple[str, Read]]:
    """Every read of a parameter by a node, with the parameter's name."""
    for function in module.functions.values():
        for node in function.nodes:
            for number, operand in enumerate(node.inputs):
                if isinstance(operand, ParamRef):
                    yield operand.name, Read(function.name, node, number)


def apply_changes(module: Module, changes: Changes) -> tuple[Module, dict[Read, ParamRef]]:
    """The module with changed parameters, and what is read in place of those that had to be parted from the old ones.

    A parameter all of whose reads want the same keeps its name; functions that return it count as a read of what it was.
    """
    wanted: dict[str, dict[tuple[Change, ...], list[Read]]] = {}
    for name, read in reads(module):
        wanted.setdefault(name, {}).setdefault(changes.get(read, ()), []).append(read)
    returned = {r.name for f in module.functions.values() for r in f.results if isinstance(r, ParamRef)}
    params: dict[str, Param] = {}
    parted: dict[Read, ParamRef] = {}
    for name, by_changes in wanted.items():
        kept = () if () in by_changes or name in returned else next(iter(by_changes))
        for wants, of in by_changes.items():
            if not wants:
                continue
            new = name if wants == kept else unused(f"{name}.parted", {*module.params, *params})
            params[new] = changed(module.params[name], new, wants)
            if new != name:
                parted |= dict.fromkeys(of, ParamRef(new, params[new].type))
    return module.with_params(params.values()), parted


def reading(module: Module, parted: Mapping[Read, ParamRef]) -> tuple[Module, dict[str, dict[Value, Operand]]]:
    """The module that reads other parameters at some places, and by function what stands for each value."""
    same: dict[str, dict[Value, Operand]] = {}
    for name, function in module.functions.items():
        copy = Rewriter(function)
        for node in function.nodes:
            operands = copy.operands(node)
            new = tuple(parted.get(Read(name, node, n), operand) for n, operand in enumerate(operands))
            if all(a is b for a, b in zip(operands, new)):
                copy.keep(node)
                continue
            made = copy.node(node.op, *new, source=node.source, names=[v.name for v in node.outputs])
            for old, value in zip(node.outputs, made.outputs, strict=True):
                copy.replace(old, value)
        same[name] = {v: copy.operand(v) for v in function.values}
        module = module.with_function(copy.finish_like())
    return module, same


def unused(name: str, taken: Container[str]) -> str:
    """A name like this one that is not taken."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found
