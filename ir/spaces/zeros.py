"""Where tensors are zero, index by index, as parameters and the laws of operations tell; and which indices that makes dead.

It holds for every input of finite numbers, and where no number on the way leaves the range of its dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from planish.ir.module import Module
from planish.ir.spaces.action import largest
from planish.ir.spaces.analysis import Ruling, Space, Spaces, Tensor
from planish.ir.spaces.laws import Place
from planish.ir.spaces.terms import Atom, Term, atoms, size


class Zeros:
    """At which indices of which atoms tensors are zero. A state is where all that is written to it is: it starts so."""

    def __init__(self, module: Module, spaces: Spaces) -> None:
        self._module, self._spaces = module, spaces
        self._found: dict[tuple[Tensor, Atom], torch.Tensor] = {}
        for name, param in module.params.items():
            self._read(("param", name), param.wide_value())
        states: list[tuple[Tensor, Atom]] = []
        for name in module.states:
            key: Tensor = ("state", name)
            for atom in _known(spaces, key):
                states.append((key, atom))
                self._found[key, atom] = torch.ones(int(atom.size), dtype=torch.bool)  # type: ignore[call-overload]
        while True:
            for ruling in spaces.rulings:
                self._follow(ruling)
            changed = False
            for key, atom in states:
                written = [f.updates[key[1]] for f in module.functions.values() if key[1] in f.updates]  # type: ignore[index]
                for operand in written:
                    found = self._found.get((operand, atom))  # type: ignore[arg-type]
                    left = self._found[key, atom] & (False if found is None else found)
                    changed |= not torch.equal(left, self._found[key, atom])
                    self._found[key, atom] = left
            if not changed:
                return

    def of(self, tensor: Tensor, atom: Atom) -> torch.Tensor | None:
        """The indices at which a tensor is zero, bool [size]; None where nothing is known of it."""
        return self._found.get((tensor, atom))

    def all_of(self, places: frozenset[Place], tensors: Mapping[Place, Tensor], atom: Atom) -> torch.Tensor:
        """The indices at which all tensors at some places are zero, bool [size]."""
        whole = torch.ones(int(atom.size), dtype=torch.bool)  # type: ignore[call-overload]
        for place in places:
            found = self.of(tensors[place], atom) if place in tensors else None
            whole = whole & (False if found is None else found)
        return whole

    def dead(self, space: Space) -> torch.Tensor:
        """The indices of a space that can be taken away without a change of anything else, bool [size]."""
        whole = torch.ones(int(space.atom.size), dtype=torch.bool)  # type: ignore[call-overload]
        for ruling in space.rulings:
            if ruling.law.silent is None:
                return torch.zeros_like(whole)
            if ruling.law.reads is not None:
                whole = whole & ~self._read_of(ruling.law.term, ruling.tensors[ruling.law.reads], space.atom)
            if ruling.law.silent:
                sets = (self.all_of(places, ruling.tensors, space.atom) for places in ruling.law.silent)
                whole = whole & torch.stack([*sets]).any(0)
        return whole

    def _read_of(self, term: Term, numbers: Tensor, atom: Atom) -> torch.Tensor:
        """Which indices of an atom of a term are read by a tensor that numbers the term's; all, where it is no parameter."""
        count = size(term)
        if not isinstance(count, int) or not isinstance(numbers, tuple) or numbers[0] != "param":
            return torch.ones(int(atom.size), dtype=torch.bool)  # type: ignore[call-overload]
        read = torch.zeros(count, dtype=torch.int64)
        read[self._module.params[numbers[1]].value().long()] = 1
        return largest(read, [term], atom) > 0

    def _read(self, key: Tensor, value: torch.Tensor) -> None:
        value = value.int() if value.dtype == torch.bool else value
        for atom in _known(self._spaces, key):
            self._found[key, atom] = largest(value, self._spaces.terms(key), atom) == 0

    def _follow(self, ruling: Ruling) -> None:
        """What one law says of the results of its node."""
        results = [t for p, t in ruling.tensors.items() if p.kind == "result" and p in ruling.law.places]
        if not ruling.law.vanishing:
            return
        for atom, times in Counter(atoms(ruling.law.term)).items():
            # Where a result has the indices elsewhere too, the law does not speak of all of them.
            alone = [r for r in results if sum(a is atom for t in self._spaces.terms(r) for a in atoms(t)) == times]
            if isinstance(atom.size, int) and alone:
                sets = (self.all_of(places, ruling.tensors, atom) for places in ruling.law.vanishing)
                found = torch.stack([*sets]).any(0)
                self._found |= {(result, atom): found for result in alone}


def _known(spaces: Spaces, key: Tensor) -> list[Atom]:
    """The atoms of a tensor whose sizes are numbers; none for one that no function has."""
    try:
        terms = spaces.terms(key)
    except KeyError:
        return []
    found = dict.fromkeys(atom for term in terms for atom in atoms(term))
    return [atom for atom in found if isinstance(atom.size, int)]
