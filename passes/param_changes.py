"""Changes of parameters, by where they are read: what two reads want differently makes two parameters of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from planish.ir.encodings import Dense
from planish.ir.module import Module, Node, ParamRef
from planish.ir.params import Computed, Param, Storage


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
    """

    key: tuple[object, ...]
    make: Callable[[torch.Tensor], torch.Tensor] = field(compare=False)


Changes: TypeAlias = "Mapping[Read, tuple[Change, ...]]"
"""For reads of parameters, the changes one after the other."""


@dataclass(frozen=True, eq=False)
class _Changed:
    """The storage of a changed parameter, computed in float64 each time it is read."""

    old: Param
    changes: tuple[Change, ...]

    def __call__(self) -> Storage:
        return {"values": self.wide().to(self.old.type.dtype).contiguous()}

    def wide(self) -> torch.Tensor:
        value = self.old.wide_value()
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
            new = name if wants == kept else _unused(f"{name}.parted", {*module.params, *params})
            params[new] = changed(module.params[name], new, wants)
            if new != name:
                parted |= dict.fromkeys(of, ParamRef(new, params[new].type))
    return module.with_params(params.values()), parted


def _unused(name: str, taken: set[str]) -> str:
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found
