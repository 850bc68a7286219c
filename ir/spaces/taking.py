"""What is left of terms and tensors when indices of some atoms are taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from planish.ir.errors import IRError
from planish.ir.spaces.terms import Atom, Product, Term, atoms, normal, size
from planish.ir.types import Dim, as_dim

Staying: TypeAlias = "Mapping[Atom, torch.Tensor]"
"""For each atom that loses indices which of them stay: bool [size]."""


def touched(term: Term, staying: Staying) -> bool:
    """Whether a term loses any index."""
    return any(atom in staying for atom in atoms(term))


def size_left(term: Term, staying: Staying) -> Dim:
    """How many indices of a term stay."""
    term = normal(term)
    if isinstance(term, Atom):
        return int(staying[term].sum()) if term in staying else term.size
    total: Dim = 1 if isinstance(term, Product) else 0
    for inner in term.factors if isinstance(term, Product) else term.parts:
        left = size_left(inner, staying)
        total = as_dim(total * left if isinstance(term, Product) else total + left)
    return total


def mask(term: Term, staying: Staying) -> torch.Tensor | None:
    """Which indices of a term stay, bool [size], None where all do.

    Raises:
        IRError: for a term that loses some and whose size is not known.
    """
    if not touched(term, staying):
        return None
    term = normal(term)
    if isinstance(term, Atom):
        return staying[term]
    inner = term.factors if isinstance(term, Product) else term.parts
    found = []
    for each in inner:
        count, of = size(each), mask(each, staying)
        if not isinstance(count, int):
            raise IRError(f"an axis of {size(term)} indices, which depends on the inputs, would lose some")
        found.append(torch.ones(count, dtype=torch.bool) if of is None else of)
    if not isinstance(term, Product):
        return torch.cat(found)
    whole = found[0]
    for of in found[1:]:
        whole = (whole.unsqueeze(1) & of).flatten()
    return whole


def take(tensor: torch.Tensor, terms: Sequence[Term], staying: Staying) -> torch.Tensor:
    """The tensor without the indices that go."""
    for axis, term in enumerate(terms):
        of = mask(term, staying)
        if of is not None:
            tensor = tensor.index_select(axis, of.nonzero().flatten())
    return tensor
