"""Homogeneous linear equations in whole numbers."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir.spaces.solutions import solutions

UNKNOWNS = "abcdefg"


@given(st.lists(st.dictionaries(st.sampled_from(UNKNOWNS), st.integers(-3, 3), max_size=4), max_size=8))
def test_a_basis_solves_all_equations_and_nothing_is_missing(equations: list[dict[str, int]]) -> None:
    found = list(solutions(equations, UNKNOWNS))
    for solution in found:
        assert all(solution.values())
        assert all(sum(c * solution.get(u, 0) for u, c in equation.items()) == 0 for equation in equations)
    rank = _rank([[Fraction(e.get(u, 0)) for u in UNKNOWNS] for e in equations])
    assert len(found) == len(UNKNOWNS) - rank
    assert _rank([[Fraction(s.get(u, 0)) for u in UNKNOWNS] for s in found]) == len(found)


def test_solutions_have_no_common_divisor() -> None:
    assert list(solutions([{"a": 2, "b": 3}, {"c": 1}], "abc")) == [{"b": 2, "a": -3}]
    assert list(solutions([{"a": 4, "b": -2}], "ab")) == [{"b": 2, "a": 1}]
    assert list(solutions([], "a")) == [{"a": 1}]


@given(st.lists(st.dictionaries(st.sampled_from(UNKNOWNS), st.integers(-3, 3), max_size=4), max_size=8))
def test_signs_are_solved_modulo_two(equations: list[dict[str, int]]) -> None:
    """Every solution modulo 2, of which there are few enough to try, is a sum of some of the basis."""
    found = list(solutions(equations, UNKNOWNS, 2))
    assert all(set(solution.values()) == {1} for solution in found)
    sums = {frozenset[str]()}
    for solution in found:
        sums |= {of ^ frozenset(solution) for of in sums}
    for number in range(1 << len(UNKNOWNS)):
        of = {unknown: number >> place & 1 for place, unknown in enumerate(UNKNOWNS)}
        solves = all(sum(c * of[u] for u, c in equation.items()) % 2 == 0 for equation in equations)
        assert solves == (frozenset(u for u in UNKNOWNS if of[u]) in sums)
    assert len(sums) == 1 << len(found)


def _rank(rows: list[list[Fraction]]) -> int:
    """By torch, in float64: coefficients of so few small equations leave no doubt."""
    if not rows:
        return 0
    return int(torch.linalg.matrix_rank(torch.tensor([[float(c) for c in row] for row in rows], dtype=torch.float64)))
