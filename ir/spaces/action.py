"""What a space has of a tensor: how a matrix that acts on it changes the tensor, and how large its indices are there.

Both go to every axis whose term has the indices of the space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from planish.ir.spaces.terms import Atom, Product, Sum, Term, atoms, normal, size


def act(
    tensor: torch.Tensor, terms: Sequence[Term], atom: Atom, matrix: torch.Tensor, dual: bool = False
) -> torch.Tensor:
    """The tensor with a matrix [n, n], or with `dual` its inverse transposed, applied to all indices of an atom of size n.
    A diagonal may be given as it is, [n].

    Args:
        tensor: of any shape.
        terms: of its axes.
    """
    if dual:
        matrix = torch.linalg.inv(matrix).T if matrix.ndim == 2 else 1 / matrix
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
    if matrix.ndim == 2 and matrix.requires_grad:
        # Every element has a gradient, whatever it is.
        return _product(tensor, axis, matrix)
    if matrix.ndim == 1 or torch.equal(matrix, torch.diag(matrix.diagonal())):
        shape = [-1 if n == axis else 1 for n in range(tensor.ndim)]
        diagonal = matrix if matrix.ndim == 1 else matrix.diagonal()
        return tensor * diagonal.reshape(shape).to(tensor.dtype)
    if bool((matrix.count_nonzero(1) == 1).all()) and bool((matrix.sum(1) == 1).all()):
        return tensor.index_select(axis, matrix.argmax(1))
    return _product(tensor, axis, matrix)


def _product(tensor: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.tensordot(tensor, matrix.to(tensor.dtype), ([axis], [1]))
    return product.movedim(-1, axis)


def along(tensor: torch.Tensor, terms: Sequence[Term], atom: Atom) -> Iterator[torch.Tensor]:
    """The tensor as a matrix [n, rest] for each place where its terms have an atom of size n."""
    for axis, of_axis in enumerate(terms):
        term = normal(of_axis)
        if term is atom or all(inner is not atom for inner in atoms(term)):
            continue
        before, after = terms[:axis], terms[axis + 1 :]
        if isinstance(term, Product):
            sizes = [int(size(factor)) for factor in term.factors]  # type: ignore[call-overload]
            yield from along(tensor.unflatten(axis, sizes), [*before, *term.factors, *after], atom)
            return
        assert isinstance(term, Sum)
        parts = zip(tensor.split([int(size(part)) for part in term.parts], axis), term.parts)  # type: ignore[call-overload]
        for part, of_part in parts:
            yield from along(part, [*before, of_part, *after], atom)
        return
    for axis, term in enumerate(terms):
        if normal(term) is atom:
            yield tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def largest(tensor: torch.Tensor, terms: Sequence[Term], atom: Atom) -> torch.Tensor:
    """The largest absolute value [n] of a tensor at each index of an atom of size n, wherever its terms have it."""
    return torch.stack([matrix.abs().amax(1) for matrix in along(tensor, terms, atom)]).amax(0)


def squares(tensor: torch.Tensor, terms: Sequence[Term], atom: Atom) -> torch.Tensor:
    """The sum of squares [n], float64, of a tensor at each index of an atom of size n, wherever its terms have it."""
    return torch.stack([matrix.double().square().sum(1) for matrix in along(tensor, terms, atom)]).sum(0)
