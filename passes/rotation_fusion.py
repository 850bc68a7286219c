"""Rotations of spaces, multiplied into the parameters that have them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

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
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal matrix, drawn when it is asked for.

    Attributes:
        kind: "hadamard", random signs times the largest blocks of Hadamard matrices that tile the size; "random", uniform
            over all orthogonal matrices.
        size, seed: n, and what is drawn.
    """

    kind: Literal["hadamard", "random"]
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
    kind: Literal["hadamard", "random"] = "hadamard"
    spaces: Literal["all", "normed", "free"] = "all"

    def apply(self, module: Module, context: Context) -> PassResult:
        found = find_spaces(module)
        chosen: list[Space] = []
        refusals: list[str] = []
        for space in found.spaces:
            if not isinstance(space.size, int) or space.size < 2 or len(space.parameters) < 2:
                continue
            reason = _limit(module, space)
            if reason:
                refusals.append(f"the space of {space.size} indices of {_names(space)} stays: {reason}")
            elif self.spaces == "all" or (self.spaces == "normed") == _is_normed(space):
                chosen.append(space)
        if not chosen:
            return PassResult(module, 0, refusals=tuple(dict.fromkeys(refusals)))
        changes: dict[str, list[Change]] = {}
        generator = torch.Generator().manual_seed(context.seed)
        for space in chosen:
            assert isinstance(space.size, int)
            rotation = Rotation(self.kind, space.size, int(torch.randint(1 << 62, (), generator=generator)))
            for name in dict.fromkeys(name for name, _ in space.parameters):
                changes.setdefault(name, []).append(_change(found, space, rotation, name))
        params = [changed(module.params[name], name, tuple(of)) for name, of in changes.items()]
        rotated = {space.atom for space in chosen}
        correspondence: dict[str, Correspondence] = {}
        for name, function in module.functions.items():
            untouched = (v for v in function.values if rotated.isdisjoint(_atoms_of(found, v)))
            correspondence[name] = {v: v for v in untouched}
        return PassResult(
            module.with_params(params), len(chosen), correspondence, tuple(dict.fromkeys(refusals)),
            {"spaces rotated": len(chosen), "parameters rotated": len(params)},
        )  # fmt: skip


def _change(spaces: Spaces, space: Space, rotation: Rotation, name: str) -> Change:
    tensor = ("param", name)

    def make(value: torch.Tensor) -> torch.Tensor:
        # Orthogonal: its inverse transposed is itself.
        return act(value, [spaces.term(tensor, axis) for axis in range(value.ndim)], space.atom, rotation.matrix)

    return Change(("rotate", space.atom), make)


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
