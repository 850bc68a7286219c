"""Elements of the groups that laws declare, and modules on whose parameters one has acted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from planish.ir import Module, dense_param
from planish.ir.spaces.action import act
from planish.ir.spaces.analysis import Space, Spaces
from planish.ir.spaces.laws import Equation, Family, Place


def draw(family: Family, count: int, generator: torch.Generator) -> torch.Tensor:
    """A random matrix of a family, well conditioned, float64 [count, count]."""
    random = torch.randn(count, count, generator=generator, dtype=torch.float64)
    if family == Family.GENERAL:
        return torch.eye(count, dtype=torch.float64) * 2 + 0.3 * random / math.sqrt(count)
    if family == Family.ORTHOGONAL:
        rotation: torch.Tensor = torch.linalg.qr(random)[0]
        return rotation
    if family == Family.CENTRED:
        # In a basis whose first vector is the one of all ones, a rotation of the others.
        basis = torch.linalg.qr(torch.cat([torch.ones(count, 1, dtype=torch.float64), random[:, 1:]], 1))[0]
        inner = torch.eye(count, dtype=torch.float64)
        inner[1:, 1:] = torch.linalg.qr(random[1:, 1:])[0]
        centred: torch.Tensor = basis @ inner @ basis.T
        return centred
    if family == Family.PERMUTATION:
        return torch.eye(count, dtype=torch.float64)[torch.randperm(count, generator=generator)]
    return torch.eye(count, dtype=torch.float64)


def turned(module: Module, spaces: Spaces, space: Space, seed: int) -> Module:
    """The module with a drawn element of a space's family applied to every parameter that has it."""
    matrix = draw(space.family, int(space.size), torch.Generator().manual_seed(seed))  # type: ignore[call-overload]
    changed = []
    for name in sorted({name for name, _ in space.parameters}):
        tensor, param = ("param", name), module.params[name]
        terms = [spaces.term(tensor, axis) for axis in range(param.type.rank)]
        value = act(param.value().double(), terms, space.atom, matrix, space.sides[tensor] < 0)
        changed.append(dense_param(name, value.to(param.type.dtype)))
    return module.with_params(changed)


def solutions(equations: Sequence[Equation], places: Sequence[Place], modulus: int = 0) -> list[dict[Place, int]]:
    """Small integer exponents that obey the equations, all but the ones that are zero everywhere."""
    values = range(modulus) if modulus else range(-2, 3)
    found: list[dict[Place, int]] = [{}]
    for place in places:
        found = [{**exponents, place: value} for exponents in found for value in values]

    def holds(exponents: dict[Place, int]) -> bool:
        totals = (sum(c * exponents.get(p, 0) for p, c in equation.items()) for equation in equations)
        return all(total % modulus == 0 if modulus else total == 0 for total in totals)

    return [e for e in found if any(e.values()) and holds(e)]
