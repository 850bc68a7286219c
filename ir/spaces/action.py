"""How a matrix that acts on a space changes a tensor: on every axis whose term has the indices of the space."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planish.ir.spaces.terms import Atom, Product, Sum, Term, atoms, normal, size


def act(
    tensor: torch.Tensor, terms: Sequence[Term], atom: Atom, matrix: torch.Tensor, dual: bool = False
) -> torch.Tensor:
    """The tensor with a matrix [n, n], or with `dual` its inverse transposed, applied to all indices of an atom of size n.

    Args:
        tensor: of any shape.
        terms: of its axes.
    """
    matrix = torch.linalg.inv(matrix).T if dual else matrix
    for axis, term in enumerate(terms):
        if any(inner is atom for inner in atoms(term)):
            tensor = _act_on_axis(tensor, axis, term, atom, matrix)
    return tensor


def _act_on_axis(tensor: torch.Tensor, axis: int, term: Term, atom: Atom, matrix: torch.Tensor) -> torch.Tensor:
    term = normal(term)
    if term is atom:
        return _multiply(tensor, axis, matrix)
    if isinstance(term, Product):
        sizes = [int(size(factor)) for factor in term.factors]  # type: ignore[call-overload]
        whole = tensor.unflatten(axis, sizes) if sizes else tensor
        for number, factor in enumerate(term.factors):
            whole = _act_on_axis(whole, axis + number, factor, atom, matrix)
        return whole.flatten(axis, axis + len(sizes) - 1) if sizes else whole
    if isinstance(term, Sum):
        parts = tensor.split([int(size(part)) for part in term.parts], axis)  # type: ignore[call-overload]
        return torch.cat([_act_on_axis(p, axis, t, atom, matrix) for p, t in zip(parts, term.parts, strict=True)], axis)
    return tensor


def _multiply(tensor: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    """The product along one axis; what is no sum is none, so that NaN stays where it is and integers are exact."""
    if torch.equal(matrix, torch.diag(matrix.diagonal())):
        shape = [-1 if n == axis else 1 for n in range(tensor.ndim)]
        return tensor * matrix.diagonal().reshape(shape).to(tensor.dtype)
    if bool((matrix.count_nonzero(1) == 1).all()) and bool((matrix.sum(1) == 1).all()):
        return tensor.index_select(axis, matrix.argmax(1))
    product: torch.Tensor = torch.tensordot(tensor, matrix.to(tensor.dtype), ([axis], [1]))
    return product.movedim(-1, axis)
