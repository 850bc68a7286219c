"""The solutions of homogeneous linear equations with whole coefficients."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import TypeVar

Unknown = TypeVar("Unknown", bound=Hashable)


def solutions(
    equations: Iterable[Mapping[Unknown, int]], unknowns: Sequence[Unknown], modulus: int = 0
) -> Iterator[dict[Unknown, int]]:
    """A basis: for every unknown that is free a solution in whole numbers without a common divisor, zeros left out.

    Args:
        modulus: a prime, for solutions modulo it (each number from 1 to below it); 0 for solutions as they are.
    """
    rows: dict[Unknown, dict[Unknown, Fraction]] = {}
    for equation in equations:
        row = {u: value for u, c in equation.items() if (value := _reduced(Fraction(c), modulus))}
        for lead in [unknown for unknown in row if unknown in rows]:
            _subtract(row, rows[lead], row[lead], modulus)
        if not row:
            continue
        lead, first = next(iter(row.items()))
        inverse = pow(int(first), -1, modulus) if modulus else 1 / first
        rows[lead] = {unknown: _reduced(c * inverse, modulus) for unknown, c in row.items()}
        for other, of_other in rows.items():
            if other != lead and lead in of_other:
                _subtract(of_other, rows[lead], of_other[lead], modulus)
    bound: dict[Unknown, dict[Unknown, Fraction]] = {}
    for lead, row in rows.items():
        for unknown, c in row.items():
            if unknown != lead:
                bound.setdefault(unknown, {})[lead] = _reduced(-c, modulus)
    for free in unknowns:
        if free in rows:
            continue
        solution = {free: Fraction(1), **bound.get(free, {})}
        if modulus:
            yield {unknown: int(c) for unknown, c in solution.items()}
            continue
        whole = lcm(*(c.denominator for c in solution.values()))
        common = gcd(*(int(c * whole) for c in solution.values()))
        yield {unknown: int(c * whole) // common for unknown, c in solution.items()}


def _reduced(value: Fraction, modulus: int) -> Fraction:
    return value % modulus if modulus else value


def _subtract(row: dict[Unknown, Fraction], other: Mapping[Unknown, Fraction], times: Fraction, modulus: int) -> None:
    for unknown, c in other.items():
        value = _reduced(row.get(unknown, Fraction(0)) - times * c, modulus)
        if value:
            row[unknown] = value
        else:
            row.pop(unknown, None)
