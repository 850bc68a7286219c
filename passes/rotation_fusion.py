"""Rotations of spaces, multiplied into the parameters that have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol, TypeAlias

import torch

from planish.ir.encodings import Dense
from planish.ir.hadamard import hadamard, largest_block
from planish.ir.module import Module, Value
from planish.ir.ops import RmsNorm
from planish.ir.spaces.action import act
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.spaces.laws import Family
from planish.ir.spaces.terms import atoms
from planish.passes.linear_ways import operation
from planish.passes.param_changes import Change, changed
from planish.passes.pass_base import Carried, Context, Correspondence, Pass, PassResult

Kind: TypeAlias = Literal["hadamard", "random"]
Which: TypeAlias = Literal["all", "normed", "free"]


class Orthogonal(Protocol):
    """A space's rotation: an orthogonal matrix, float64 [n, n]."""

    @property
    def matrix(self) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal matrix, drawn when it is asked for.

    Attributes:
        kind: "hadamard", random signs times the largest blocks of Hadamard matrices that tile the size; "random", uniform
            over all orthogonal matrices.
        size, seed: n, and what is drawn.
    """

    kind: Kind
    size: int
    seed: int

    @cached_property
    def matrix(self) -> torch.Tensor:
        """float64 [n, n]."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.kind == "random":
            rotation, triangle = torch.linalg.qr(
                torch.randn(self.size, self.size, generator=generator, dtype=torch.float64)
            )
            # Without this the matrices are not uniform: the factorisation has its own preference of signs.
            uniform: torch.Tensor = rotation * triangle.diagonal().sign()
            return uniform
        block = largest_block(self.size)
        blocks = [hadamard(block).double() / math.sqrt(block)] * (self.size // block)
        signs = torch.randint(0, 2, (self.size,), generator=generator).double() * 2 - 1
        signed: torch.Tensor = torch.block_diag(*blocks) * signs
        return signed


class RotationFusion(Pass):
    """Rotates spaces whose group has all orthogonal matrices, which spreads outliers over many indices.

    before: @table -> rms_norm -> linear(@w) ... + linear(@u)
    after:  @table Q -> rms_norm -> linear(@w Q) ... + linear(Q^T @u)

    Which they are follows from the symmetries that `find_spaces` finds: the residual stream, once `fold-norm-gains` has left
    its norms nothing but a length (SpinQuant's R1), and what lies between two linear maps with nothing but linear operations
    in between, such as the values of heads (R2). A space that allows less stays as it is, with the reason.

    Attributes:
        kind: "hadamard" (random signs times Hadamard matrices, block-diagonal where there is none of the size) or "random".
        spaces: "normed" for spaces over which norms are taken, "free" for the others, or "all".

    Source of the method: Liu et al., SpinQuant (2024).
    """

    name: ClassVar[str] = "rotation-fusion"
    kind: Kind = "hadamard"
    spaces: Which = "all"

    def apply(self, module: Module, context: Context) -> PassResult:
        found = rotatable(module, self.spaces)
        return rotated(module, found, drawn(found, self.kind, context.seed))


@dataclass(frozen=True, eq=False)
class Rotatable:
    """What of a module may be rotated.

    Attributes:
        spaces: of the module, all of them.
        chosen: those that are rotated, each with a fixed size.
        refusals: about the others.
    """

    spaces: Spaces
    chosen: tuple[Space, ...]
    refusals: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many indices the chosen ones have."""
        return tuple(space.size for space in self.chosen if isinstance(space.size, int))

    def of(self, name: str) -> tuple[int, ...]:
        """The numbers of the chosen spaces that a parameter has."""
        return tuple(n for n, space in enumerate(self.chosen) if any(name == other for other, _ in space.parameters))

    def act(self, name: str, value: torch.Tensor, number: int, matrix: torch.Tensor) -> torch.Tensor:
        """The value of a parameter with the chosen space of that number rotated."""
        terms = [self.spaces.term(("param", name), axis) for axis in range(value.ndim)]
        # Orthogonal: its inverse transposed is itself.
        return act(value, terms, self.chosen[number].atom, matrix)


def rotatable(module: Module, which: Which) -> Rotatable:
    """Those spaces of a module that have all orthogonal matrices in their group, and parameters to take them."""
    found = find_spaces(module)
    chosen: list[Space] = []
    refusals: list[str] = []
    for space in found.spaces:
        if not isinstance(space.size, int) or space.size < 2 or len(space.parameters) < 2:
            continue
        reason = _limit(module, space)
        if reason:
            refusals.append(f"the space of {space.size} indices of {_names(space)} stays: {reason}")
        elif which == "all" or (which == "normed") == _is_normed(space):
            chosen.append(space)
    return Rotatable(found, tuple(chosen), tuple(dict.fromkeys(refusals)))


def drawn(found: Rotatable, kind: Kind, seed: int) -> list[Rotation]:
    """A rotation for each of the chosen spaces."""
    generator = torch.Generator().manual_seed(seed)
    return [Rotation(kind, size, int(torch.randint(1 << 62, (), generator=generator))) for size in found.sizes]


def rotated(module: Module, found: Rotatable, rotations: Sequence[Orthogonal]) -> PassResult:
    """The module with a rotation of each of the chosen spaces multiplied into its parameters, in float64."""
    if not found.chosen:
        return PassResult(module, 0, refusals=found.refusals)
    names = dict.fromkeys(name for space in found.chosen for name, _ in space.parameters)
    params = [
        changed(module.params[name], name, tuple(_change(found, name, n, rotations[n]) for n in found.of(name)))
        for name in names
    ]
    atoms_rotated = {space.atom for space in found.chosen}
    correspondence: dict[str, Correspondence] = {}
    for name, function in module.functions.items():
        untouched = (v for v in function.values if atoms_rotated.isdisjoint(_atoms_of(found.spaces, v)))
        correspondence[name] = {v: v for v in untouched}
    carried = {
        name: {v: c for v in function.values if (c := _carried(found, v, rotations)) is not None}
        for name, function in module.functions.items()
    }
    return PassResult(
        module.with_params(params), len(found.chosen), correspondence, found.refusals,
        {"spaces rotated": len(found.chosen), "parameters rotated": len(params)}, carried=carried,
    )  # fmt: skip


def _carried(found: Rotatable, value: Value, rotations: Sequence[Orthogonal]) -> Carried | None:
    """What a value becomes: itself, turned in all spaces that it has; None where it has none."""
    having = _atoms_of(found.spaces, value)
    turned = [(space.atom, r.matrix) for space, r in zip(found.chosen, rotations, strict=True) if space.atom in having]
    if not turned:
        return None
    terms = found.spaces.terms(value)

    def image(tensor: torch.Tensor) -> torch.Tensor:
        for atom, matrix in turned:
            tensor = act(tensor, terms, atom, matrix)
        return tensor

    def bound(errors: torch.Tensor) -> torch.Tensor:
        for atom, matrix in turned:
            errors = act(errors, terms, atom, matrix.abs())
        return errors

    return Carried(value, image, bound, sum(len(matrix) for _, matrix in turned))


def _change(found: Rotatable, name: str, number: int, rotation: Orthogonal) -> Change:
    def make(value: torch.Tensor) -> torch.Tensor:
        return found.act(name, value, number, rotation.matrix)

    atom, terms = found.chosen[number].atom, found.spaces.terms(("param", name))
    return Change(("rotate", atom), make, frozenset(n for n, term in enumerate(terms) if atom in atoms(term)))


def _limit(module: Module, space: Space) -> str:
    """Why a space is not rotated; empty where it may be."""
    if space.family < Family.ORTHOGONAL:
        limit = next((each for each in space.limits if each.node is not None), next(iter(space.limits), None))
        assert limit is not None
        place = operation(limit.node) if limit.node is not None else "the module's border"
        return f"{place}: {limit.sentence}"
    encoded = next((n for n, _ in space.parameters if not isinstance(module.params[n].encoding, Dense)), None)
    return "" if encoded is None else f"{encoded} is encoded already: rotate before weights are quantised"


def _is_normed(space: Space) -> bool:
    return any(limit.node is not None and isinstance(limit.node.op, RmsNorm) for limit in space.limits)


def _names(space: Space) -> str:
    names = list(dict.fromkeys(name for name, _ in space.parameters))
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _atoms_of(spaces: Spaces, value: Value) -> set[object]:
    return {atom for axis in range(value.type.rank) for atom in atoms(spaces.term(value, axis))}
