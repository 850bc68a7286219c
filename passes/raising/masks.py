"""Masks described: which keys a query sees, read off the index term of a mask tensor.

A mask over (batch, head, query, key) is a conjunction of causal, window, chunk and padding conditions, or it is not
described and stays a tensor. Nothing is dropped: a conjunct that is not recognised leaves the whole mask undescribed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy
from torch.utils._sympy.functions import FloorDiv

from planish.passes.raising.index_terms import INPUT, Term, axis, exclusive, is_truth, truth

BATCH, QUERY, KEY = axis(0), axis(2), axis(3)


@dataclass(frozen=True)
class Mask:
    """A described mask, with the meaning of the attributes of the same names of `attention`; `padding` names the input."""

    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    padding: str | None = None


def visible_where(term: Term) -> Term | None:
    """The condition under which an additive mask is 0 (elsewhere it is minus infinity), or a boolean mask is true.

    None when the term adds anything else.
    """
    if is_truth(term):
        return term
    leaves = exclusive(term)
    if any(value != 0 and value != -sympy.oo for value, _ in leaves):
        return None
    return sympy.Or(*(condition for value, condition in leaves if value == 0))


def describe(condition: Term) -> Mask | None:
    """The mask that a condition over (batch, head, query, key) describes, or None."""
    mask = Mask()
    for conjunct in sympy.And.make_args(sympy.simplify_logic(truth(condition), form="cnf", deep=False)):
        described = _conjunct(conjunct, mask)
        if described is None:
            return None
        mask = described
    return mask


def _conjunct(conjunct: Term, mask: Mask) -> Mask | None:
    if conjunct == sympy.true:
        return mask
    if isinstance(conjunct, sympy.Ne) and conjunct.lhs.func is INPUT and conjunct.rhs == 0:
        name, *indices = conjunct.lhs.args
        known = indices == [BATCH, KEY] and mask.padding in (None, name.name)
        return replace(mask, padding=name.name) if known else None
    if isinstance(conjunct, sympy.Eq):
        size = _chunk(conjunct)
        return None if size is None or mask.chunk not in (None, size) else replace(mask, chunk=size)
    limit = _distance_limit(conjunct)
    if limit is None:
        return None
    sign, bound = limit
    if sign > 0:
        # key - query <= bound
        return replace(mask, causal=True) if bound == 0 else None
    # query - key <= bound
    window = bound + 1 if mask.window is None else min(mask.window, bound + 1)
    return replace(mask, window=window) if bound >= 0 else None


def _distance_limit(conjunct: Term) -> tuple[int, int] | None:
    """(+1, c) for key - query <= c, (-1, c) for query - key <= c."""
    if not isinstance(conjunct, (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt)):
        return None
    # gts and lts are the larger and the smaller side, however the relation is written.
    difference = sympy.expand(conjunct.lts - conjunct.gts)
    strict = 1 if isinstance(conjunct, (sympy.Lt, sympy.Gt)) else 0
    for sign in (1, -1):
        rest = sympy.expand(difference - sign * (KEY - QUERY))
        if rest.is_Integer:
            return sign, -int(rest) - strict
    return None


def _chunk(conjunct: sympy.Eq) -> int | None:
    """The size c of query // c == key // c."""
    sides = (conjunct.lhs, conjunct.rhs)
    if not all(isinstance(s, FloorDiv) for s in sides):
        return None
    (a, size), (b, other) = (s.args for s in sides)
    return int(size) if size == other and size.is_Integer and {a, b} == {QUERY, KEY} else None
