"""What an operation allows to be done to its axes: families of matrices, and how scales and signs go through.

An operation states its `Indexing`: the term of every axis of its operands and results, and for each term a `Law`. A law says
which matrices may act on those indices, in all tensors that have them at once, so that the results are those of the operation
before, acted on. What no law mentions may not be touched.

A matrix g acts on a tensor *as it is* (g x), or *dually* (by its inverse transposed), as on a weight that contracts the axis:
(W g^-1) (g x) = W x. For orthogonal matrices and permutations the two are the same. Positive scales and signs, one for each
index, are told apart from g: each tensor has its own, x times 2^a with one number a, and a law is a set of equations between
those of its tensors. A product of elements wants a + b = c, a square 2 a = c, a sigmoid a = 0 and c = 0.

Taking an index away is no matrix, and is told apart again: by which operands have to be zero there for the other indices to
stay as they are, and by which make the results zero there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from planish.ir.spaces.terms import Atom, Mismatch, Term, unify
from planish.ir.types import Dim


class Family(IntEnum):
    """Groups of matrices, each one a part of the next."""

    FIXED = 0
    """Nothing but the identity."""
    PERMUTATION = 1
    CENTRED = 2
    """Orthogonal matrices that leave the vector of all ones alone."""
    ORTHOGONAL = 3
    GENERAL = 4
    """Every invertible matrix."""


@dataclass(frozen=True)
class Place:
    """One tensor of a node: operand or result `number`."""

    kind: str
    number: int


def operand(number: int) -> Place:
    return Place("operand", number)


def result(number: int = 0) -> Place:
    return Place("result", number)


Equation: TypeAlias = "Mapping[Place, int]"
"""Coefficients of the places' exponents; their sum is zero."""


@dataclass(frozen=True)
class Law:
    """What may be done to the indices of a term in the tensors at `places`, all of which have it.

    Attributes:
        term: the indices.
        family: the largest family that may act on them.
        places: for each tensor that has the indices, 1 where a matrix acts as it is and -1 where it acts dually.
        scales, signs: the equations that exponents of positive scales and of signs obey, the latter modulo 2.
        silent: what taking an index away wants: sets of operands, one of which must be zero at the index for everything at
            other indices, and what has the indices no more, to stay as it is. An empty tuple wants nothing, since each
            index is by itself; None allows it never.
        vanishing: sets of operands that, zero at an index, make every result that has it zero there, whatever finite
            numbers other operands hold.
        reads: the operand whose integers are the indices that are read; others may be taken away without a change.
    """

    term: Term
    family: Family
    places: Mapping[Place, int]
    scales: tuple[Equation, ...]
    signs: tuple[Equation, ...]
    silent: tuple[frozenset[Place], ...] | None
    vanishing: tuple[frozenset[Place], ...] = ()
    reads: Place | None = None


def equal(places: Mapping[Place, int]) -> tuple[Equation, ...]:
    """The equations of one exponent in all places, negative where it acts dually."""
    (first, one), *rest = places.items()
    return tuple({first: one, place: -other} for place, other in rest)


def none(places: Iterable[Place]) -> tuple[Equation, ...]:
    """The equations that allow no exponent."""
    return tuple({place: 1} for place in places)


def any_of(*places: Place) -> tuple[frozenset[Place], ...]:
    """Sets of one operand: each of them is enough."""
    return tuple(frozenset((place,)) for place in places)


def linear(term: Term, *places: Place, dual: Iterable[Place] = ()) -> Law:
    """The operation is linear along these indices: every invertible matrix goes through it. What no result has is summed."""
    reps = {**dict.fromkeys(places, 1), **dict.fromkeys(dual, -1)}
    operands = [place for place in reps if place.kind == "operand"]
    if len(operands) < len(reps):
        return Law(term, Family.GENERAL, reps, equal(reps), equal(reps), (), (frozenset(operands),))
    return Law(term, Family.GENERAL, reps, equal(reps), equal(reps), any_of(*operands))


def affine(term: Term, *places: Place) -> Law:
    """Linear up to something that is the same at all these indices: matrices that leave it alone go through."""
    return Law(term, Family.CENTRED, dict.fromkeys(places, 1), none(places), none(places), ())


def elementwise(
    term: Term,
    places: Iterable[Place],
    scales: tuple[Equation, ...] | None = None,
    signs: tuple[Equation, ...] | None = None,
    *,
    silent: tuple[frozenset[Place], ...] | None = (),
    vanishing: tuple[frozenset[Place], ...] = (),
) -> Law:
    """Each index by itself, all by the same function; without equations it lets no scale or sign through."""
    found = tuple(places)
    return Law(
        term,
        Family.PERMUTATION,
        dict.fromkeys(found, 1),
        none(found) if scales is None else scales,
        none(found) if signs is None else signs,
        silent,
        vanishing,
    )


def picked(term: Term, place: Place, reads: Place) -> Law:
    """Indices of which some are read, by their numbers."""
    return Law(term, Family.FIXED, {place: 1}, none([place]), none([place]), (), reads=reads)


def fresh(*shape: Dim) -> tuple[Atom, ...]:
    """An atom for each axis."""
    return tuple(Atom(dim) for dim in shape)


@dataclass(frozen=True)
class Indexing:
    """The terms of all axes of one node (None for an absent operand) and the laws of those that may be touched."""

    operands: tuple[tuple[Term, ...] | None, ...]
    results: tuple[tuple[Term, ...], ...]
    laws: tuple[Law, ...]


def at_operands(indexing: Indexing, numbers: Sequence[int]) -> Indexing | None:
    """What an operation states of each mention of an operand, stated of the operands, which may be mentioned in any order
    and more than once; None where two mentions of one have indices that are not alike.

    Args:
        numbers: the operand of each mention.
    """
    terms: list[tuple[Term, ...] | None] = [None] * (max(numbers, default=-1) + 1)
    for number, of in zip(numbers, indexing.operands, strict=True):
        for one, other in zip(terms[number] or (), of or ()):
            try:
                unify(one, other)
            except Mismatch:
                return None
        terms[number] = of

    def moved(place: Place) -> Place:
        return operand(numbers[place.number]) if place.kind == "operand" else place

    def equations(stated: Iterable[Equation]) -> tuple[Equation, ...]:
        found = []
        for each in stated:
            sums: dict[Place, int] = {}
            for place, c in each.items():
                sums[moved(place)] = sums.get(moved(place), 0) + c
            found.append(sums)
        return tuple(found)

    def law(of: Law) -> Law:
        places = {moved(place): side for place, side in of.places.items()}
        torn = any(places[moved(place)] != side for place, side in of.places.items())
        family = min(of.family, Family.ORTHOGONAL) if torn else of.family
        silent, vanishing = (
            None if sets is None else tuple(frozenset(map(moved, each)) for each in sets)
            for sets in (of.silent, of.vanishing)
        )
        assert vanishing is not None
        reads = None if of.reads is None else moved(of.reads)
        return Law(of.term, family, places, equations(of.scales), equations(of.signs), silent, vanishing, reads)

    return Indexing(tuple(terms), indexing.results, tuple(map(law, indexing.laws)))
