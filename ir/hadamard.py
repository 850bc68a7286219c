"""Hadamard matrices: entries 1 and -1, rows orthogonal to each other. Of every order that the sizes of networks ask for.

    order 2^m:                            Sylvester's doubling
    order q + 1, q = 3 modulo 4:          Paley's first construction, q a power of a prime
    order 2 (q + 1), q = 1 modulo 4:      Paley's second construction
    order 4 m:                            four circulants (`hadamard_circulants`), where Paley's constructions miss an order
    products of these:                    by doubling

A size is a power of two times the smallest order that does: 11008 = 172 * 64 with m = 43, 6400 = 100 * 64 with q = 49. Every
multiple of 4 up to 592 has one, except 412 and 436. Where there is none (the size is not a multiple of 4), or none is known
here, `largest_block` is what tiles the size.

Source: Paley, On orthogonal matrices (1933).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache

import torch

from planish.ir.hadamard_circulants import FIRST_ROWS, of_circulants


@cache
def hadamard(order: int) -> torch.Tensor:
    """A Hadamard matrix, int8 [order, order].

    Raises:
        ValueError: for an order of which none is known here.
    """
    core = core_of(order)
    if core is None:
        raise ValueError(f"no Hadamard matrix of order {order} is known here: use blocks of {largest_block(order)}")
    return torch.kron(_core(core), sylvester(order // core))


@cache
def core_of(order: int) -> int | None:
    """The smallest order of a construction that times a power of two is `order`; None where there is none."""
    if order < 1:
        return None
    odd = order
    while odd % 2 == 0:
        odd //= 2
    core = odd
    while core <= order:
        if core in (1, 2) or _field_of(core) is not None or core in FIRST_ROWS:
            return core
        core *= 2
    return None


def largest_block(size: int) -> int:
    """The largest divisor of a size of which there is a Hadamard matrix here; 1 at least."""
    return next(block for block in range(size, 0, -1) if size % block == 0 and core_of(block) is not None)


def sylvester(order: int) -> torch.Tensor:
    """The Hadamard matrix of a power of two that the fast transform computes, int8."""
    found = torch.ones(1, 1, dtype=torch.int8)
    while len(found) < order:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found


def _field_of(order: int) -> tuple[int, int] | None:
    """The number of elements of the field behind one of Paley's constructions, and which of the two it is."""
    if order % 4:
        return None
    for size, kind in ((order - 1, 1), (order // 2 - 1, 2)):
        if size % 4 == (3 if kind == 1 else 1) and _prime_power(size) is not None:
            return size, kind
    return None


@cache
def _core(order: int) -> torch.Tensor:
    if order <= 2:
        return sylvester(order)
    if order in FIRST_ROWS:
        return of_circulants(order)
    found = _field_of(order)
    assert found is not None
    size, kind = found
    residues = _residues(size)
    ones, eye = torch.ones(size, 1, dtype=torch.int8), torch.eye(size + 1, dtype=torch.int8)
    zero = torch.zeros(1, 1, dtype=torch.int8)
    if kind == 1:
        skew = torch.cat([torch.cat([zero, ones.T], 1), torch.cat([-ones, residues], 1)])
        return skew + eye
    symmetric = torch.cat([torch.cat([zero, ones.T], 1), torch.cat([ones, residues], 1)])
    plus, minus = symmetric + eye, symmetric - eye
    return torch.cat([torch.cat([plus, minus], 1), torch.cat([minus, -plus], 1)])


def _residues(size: int) -> torch.Tensor:
    """For all pairs of elements of a field: 1 where their difference is a square, -1 where it is none, 0 where it is zero."""
    prime, degree = _prime_power(size) or (0, 0)
    modulus = _irreducible(prime, degree)
    elements = list(itertools.product(range(prime), repeat=degree))
    number = {element: n for n, element in enumerate(elements)}
    character = torch.full((size,), -1, dtype=torch.int8)
    for element in elements:
        character[number[_product(element, element, modulus, prime)]] = 1
    character[number[(0,) * degree]] = 0
    digits = torch.tensor(elements)
    differences = (digits[:, None] - digits[None]) % prime
    weights = torch.tensor([prime ** (degree - 1 - n) for n in range(degree)])
    return character[(differences * weights).sum(-1)]


def _product(a: tuple[int, ...], b: tuple[int, ...], modulus: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Of polynomials, highest power first, modulo a monic one whose leading coefficient is left out."""
    degree = len(a)
    whole = [0] * (2 * degree - 1)
    for i, j in itertools.product(range(degree), repeat=2):
        whole[i + j] += a[i] * b[j]
    for n in range(degree - 1):
        for i, coefficient in enumerate(modulus):
            whole[n + 1 + i] -= whole[n] * coefficient
    return tuple(c % prime for c in whole[degree - 1 :])


@cache
def _irreducible(prime: int, degree: int) -> tuple[int, ...]:
    """A monic polynomial without factors, its leading coefficient left out."""
    if degree == 1:
        return (0,)
    return next(
        p
        for p in itertools.product(range(prime), repeat=degree)
        if not any(_divides(f, p, prime) for f in _monic(prime, degree // 2))
    )


def _monic(prime: int, most: int) -> Iterator[tuple[int, ...]]:
    for degree in range(1, most + 1):
        yield from itertools.product(range(prime), repeat=degree)


def _divides(factor: tuple[int, ...], polynomial: tuple[int, ...], prime: int) -> bool:
    """Whether one monic polynomial divides another, leading coefficients left out."""
    rest = [1, *polynomial]
    while len(rest) > len(factor):
        lead = rest.pop(0)
        for n, coefficient in enumerate(factor):
            rest[n] = (rest[n] - lead * coefficient) % prime
    return not any(rest)


def _prime_power(number: int) -> tuple[int, int] | None:
    """The prime and the exponent of a power of a prime; None for other numbers."""
    if number < 2:
        return None
    prime = next((p for p in range(2, math.isqrt(number) + 1) if number % p == 0), number)
    degree = 0
    while number % prime == 0:
        number, degree = number // prime, degree + 1
    return (prime, degree) if number == 1 else None
