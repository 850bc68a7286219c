"""The spaces of a module: every index that some tensors share, where it occurs, and what may be done to it in all of them.

All functions are read together: parameters and states are one tensor wherever they occur. Terms of axes are made equal node
by node; what cannot be made equal is fixed, with the reason. Then every law restricts the atoms of its term, and what an
operation has without a law is fixed by it. Names of modules and parameters are shown and never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from planish.ir.module import Function, Module, Node, Operand, ParamRef, Value
from planish.ir.spaces.laws import Equation, Family, Indexing, Law, Place, fresh
from planish.ir.spaces.solutions import solutions
from planish.ir.spaces.terms import Atom, Mismatch, Term, atoms, normal, unify
from planish.ir.types import Dim, TensorType

Tensor: TypeAlias = "Value | tuple[str, str]"
"""A value, or ("param", name) or ("state", name)."""


@dataclass(frozen=True)
class Limit:
    """What keeps a space from a larger family: a node, or None for the module's border, and why; at the border, the name of
    the output where it is one."""

    family: Family
    node: Node | None
    sentence: str
    output: str = ""


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor."""

    tensor: Tensor
    number: int


@dataclass(frozen=True, eq=False)
class Ruling:
    """A law of a node, and the tensors at its places."""

    node: Node
    law: Law
    tensors: Mapping[Place, Tensor]


@dataclass(frozen=True, eq=False)
class Space:
    """Indices that some axes share.

    Attributes:
        atom: the indices, as they occur in the terms of axes.
        axes: where they occur; an axis that is a product or a sum of spaces occurs in each of them.
        family: the matrices that may act on all of them at once.
        sides: 1 for tensors on which a matrix acts as it is, -1 where it acts dually.
        limits: what allows no larger family.
        equations: what exponents of positive scales obey, one equation a mapping from tensors to coefficients.
        parities: what exponents of signs obey, modulo 2.
        rulings: the laws of the operations that have the indices.
    """

    atom: Atom
    axes: tuple[Axis, ...]
    family: Family
    sides: Mapping[Tensor, int]
    limits: tuple[Limit, ...]
    equations: tuple[Mapping[Tensor, int], ...]
    parities: tuple[Mapping[Tensor, int], ...]
    rulings: tuple[Ruling, ...]

    def scalings(self) -> tuple[Mapping[Tensor, int], ...]:
        """A basis of the scales: each the exponents, whole numbers without a common divisor, of the tensors it changes."""
        return self._solved[0]

    def signings(self) -> tuple[Mapping[Tensor, int], ...]:
        """A basis of the signs: each the tensors, with 1, whose indices may be given any signs, the same in all of them."""
        return self._solved[1]

    @cached_property
    def _solved(self) -> tuple[tuple[Mapping[Tensor, int], ...], ...]:
        if self.family == Family.FIXED:
            return (), ()
        tensors = list(dict.fromkeys(axis.tensor for axis in self.axes))
        systems = ((self.equations, 0), (self.parities, 2))
        return tuple(tuple(solutions(equations, tensors, modulus)) for equations, modulus in systems)

    @property
    def scales(self) -> int:
        """How many independent positive scales may be given to each index."""
        return len(self.scalings())

    @property
    def signs(self) -> int:
        """How many independent signs may be given to each index."""
        return len(self.signings())

    @property
    def size(self) -> Dim:
        """How many indices there are."""
        return self.atom.size

    @property
    def parameters(self) -> tuple[tuple[str, int], ...]:
        """The parameters that have the indices, by name and axis."""
        tensors = ((axis.tensor, axis.number) for axis in self.axes)
        return tuple((t[1], number) for t, number in tensors if isinstance(t, tuple) and t[0] == "param")


@dataclass
class Spaces:
    """All spaces of a module, and the term of every axis.

    Attributes:
        spaces: in the order in which their axes are met.
        rulings: the laws of all nodes, in the order of the functions and their nodes.
    """

    spaces: tuple[Space, ...]
    rulings: tuple[Ruling, ...]
    _terms: Mapping[Tensor, tuple[Term, ...]]
    _of: Mapping[Atom, Space]
    _indexing: Mapping[Node, Indexing]

    def of(self, tensor: Tensor, axis: int) -> tuple[Space, ...]:
        """The spaces of one axis, in order: one, or the factors and parts of it."""
        return tuple(self._of[atom] for atom in atoms(self._terms[tensor][axis]))

    def term(self, tensor: Tensor, axis: int) -> Term:
        """What the indices of an axis are made of."""
        return normal(self._terms[tensor][axis])

    def terms(self, tensor: Tensor) -> tuple[Term, ...]:
        """What the indices of all axes of a tensor are made of."""
        return self._terms[tensor]

    def indexing(self, node: Node) -> Indexing:
        """What a node says of its indices; of one that says nothing, that each axis is its own."""
        return self._indexing[node]


@dataclass
class _Reading:
    """What was read so far."""

    terms: dict[Tensor, tuple[Term, ...]] = field(default_factory=dict)
    laws: list[Ruling] = field(default_factory=list)
    fixed: list[tuple[Term, Limit]] = field(default_factory=list)
    nodes: list[tuple[Node, Indexing]] = field(default_factory=list)

    def tensor(self, operand: Operand) -> Tensor:
        """The key of an operand; what was not met before has an atom for each axis."""
        key: Tensor = operand if isinstance(operand, Value) else (
            "param" if isinstance(operand, ParamRef) else "state", operand.name
        )  # fmt: skip
        if key not in self.terms:
            self.terms[key] = fresh(*operand.type.shape)
        return key

    def fix(self, terms: Sequence[Term], node: Node | None, sentence: str, output: str = "") -> None:
        self.fixed += [(term, Limit(Family.FIXED, node, sentence, output)) for term in terms]

    def equal(self, ours: Sequence[Term], theirs: Sequence[Term], node: Node | None) -> None:
        """Make the terms of two tensors equal; where they cannot be, both are fixed."""
        for one, other in zip(ours, theirs, strict=True):
            try:
                unify(one, other)
            except Mismatch as reason:
                self.fix((one, other), node, f"its indices are read in another order: {reason}")


def find_spaces(module: Module) -> Spaces:
    """The spaces of all functions of a module."""
    reading = _Reading()
    for function in module.functions.values():
        _read(function, reading)
    return _settle(reading)


def _read(function: Function, reading: _Reading) -> None:
    for value in function.inputs:
        reading.fix(reading.terms.setdefault(value, fresh(*value.type.shape)), None, f"an input of {function.name}")
    for node in function.nodes:
        operands = [None if o is None else reading.tensor(o) for o in node.inputs]
        indexing = node.op.indexing(*node.input_types)
        if indexing is None:
            indexing = _barrier(node)
            for terms in (*indexing.operands, *indexing.results):
                reading.fix(terms or (), node, "it declares nothing about its indices")
        # Before its terms meet those of others: two axes may turn out to be one, and only one of them have a law.
        for atom in _without_law(indexing):
            reading.fix((atom,), node, "it reads these indices by their position")
        for key, terms in zip(operands, indexing.operands, strict=True):
            if key is not None and terms is not None:
                reading.equal(reading.terms[key], terms, node)
        for value, terms in zip(node.outputs, indexing.results, strict=True):
            reading.terms[value] = terms
        keys: dict[Place, Tensor] = {Place("operand", n): k for n, k in enumerate(operands) if k is not None}
        keys |= {Place("result", n): value for n, value in enumerate(node.outputs)}
        reading.laws += [Ruling(node, law, keys) for law in indexing.laws]
        reading.nodes.append((node, indexing))
    for name, operand in zip(function.output_names, function.outputs):
        reading.fix(reading.terms[reading.tensor(operand)], None, f"the output {name} of {function.name}", name)
    for name, operand in function.updates.items():
        state = reading.terms.setdefault(("state", name), fresh(*operand.type.shape))
        reading.equal(state, reading.terms[reading.tensor(operand)], None)


def _barrier(node: Node) -> Indexing:
    def terms(type: TensorType | None) -> tuple[Term, ...] | None:
        return None if type is None else fresh(*type.shape)

    results = tuple(fresh(*value.type.shape) for value in node.outputs)
    return Indexing(tuple(terms(t) for t in node.input_types), results, ())


def _settle(reading: _Reading) -> Spaces:
    """Restrict every atom by all that was read about it."""
    axes: dict[Atom, list[Axis]] = {}
    for tensor, terms in reading.terms.items():
        for number, term in enumerate(terms):
            for atom in dict.fromkeys(atoms(term)):
                axes.setdefault(atom, []).append(Axis(tensor, number))
    limits: dict[Atom, list[Limit]] = {atom: [] for atom in axes}
    systems: dict[Atom, tuple[list[dict[Tensor, int]], list[dict[Tensor, int]]]] = {a: ([], []) for a in axes}
    relations: dict[Atom, list[tuple[Node, dict[Tensor, set[int]]]]] = {atom: [] for atom in axes}
    rulings: dict[Atom, list[Ruling]] = {atom: [] for atom in axes}
    # Atoms of terms that could not be made equal are of no axis; the axis they were meant for is fixed.
    for ruling in reading.laws:
        node, law, keys = ruling.node, ruling.law, ruling.tensors
        for atom in filter(axes.__contains__, atoms(law.term)):
            rulings[atom].append(ruling)
            limits[atom].append(Limit(law.family, node, _WHY[law.family]))
            relations[atom].append((node, _sides_of(law, keys)))
            for system, equations in zip(systems[atom], (law.scales, law.signs)):
                system += [_of_tensors(equation, keys) for equation in equations]
    for term, limit in reading.fixed:
        for atom in filter(axes.__contains__, atoms(term)):
            limits[atom].append(limit)
    spaces = {}
    for atom, where in axes.items():
        sides, torn = _sides(relations[atom])
        if torn is not None:
            limits[atom].append(Limit(Family.ORTHOGONAL, torn, "it multiplies the indices of a tensor with themselves"))
        family = min((limit.family for limit in limits[atom]), default=Family.GENERAL)
        kept = tuple(limit for limit in limits[atom] if limit.family == family < Family.GENERAL)
        scales, signs = (tuple(system) for system in systems[atom])
        spaces[atom] = Space(atom, tuple(where), family, sides, kept, scales, signs, tuple(rulings[atom]))
    return Spaces(tuple(spaces.values()), tuple(reading.laws), reading.terms, spaces, dict(reading.nodes))


def _without_law(indexing: Indexing) -> Iterator[Atom]:
    """What an operation has and says nothing of: it reads those indices by their position."""
    lawful = {atom for law in indexing.laws for atom in atoms(law.term)}
    for terms in (*indexing.operands, *indexing.results):
        for term in terms or ():
            yield from (atom for atom in atoms(term) if atom not in lawful)


_WHY = {
    Family.FIXED: "nothing may be done to it",
    Family.PERMUTATION: "it treats each index by itself",
    Family.CENTRED: "it adds, or takes the mean, over all indices alike",
    Family.ORTHOGONAL: "it takes the length of a vector",
    Family.GENERAL: "",
}


def _sides_of(law: Law, keys: Mapping[Place, Tensor]) -> dict[Tensor, set[int]]:
    found: dict[Tensor, set[int]] = {}
    for place, side in law.places.items():
        if place in keys:
            found.setdefault(keys[place], set()).add(side)
    return found


def _sides(relations: Sequence[tuple[Node, dict[Tensor, set[int]]]]) -> tuple[dict[Tensor, int], Node | None]:
    """On which side each tensor is, and the first node that would have one on both."""
    neighbours: dict[Tensor, list[tuple[Tensor, int, Node]]] = {}
    for node, sides in relations:
        if any(len(of) > 1 for of in sides.values()):
            return dict.fromkeys((t for _, s in relations for t in s), 1), node
        (first, (one,)), *rest = sides.items()
        neighbours.setdefault(first, [])
        for other, (side,) in rest:
            neighbours[first].append((other, one * side, node))
            neighbours.setdefault(other, []).append((first, one * side, node))
    found: dict[Tensor, int] = {}
    for start in neighbours:
        if start in found:
            continue
        found[start], waiting = 1, [start]
        while waiting:
            tensor = waiting.pop()
            for other, turn, node in neighbours[tensor]:
                if other not in found:
                    found[other] = found[tensor] * turn
                    waiting.append(other)
                elif found[other] != found[tensor] * turn:
                    return dict.fromkeys(neighbours, 1), node
    return found, None


def _of_tensors(equation: Equation, keys: Mapping[Place, Tensor]) -> dict[Tensor, int]:
    found: dict[Tensor, int] = {}
    for place, coefficient in equation.items():
        if place in keys:
            found[keys[place]] = found.get(keys[place], 0) + coefficient
    return found
