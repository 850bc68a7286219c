"""Outliers put into a network without changing what it computes, as a touchstone for what is to take them out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planish.ir import InputError, Interpreter, Module, Node
from planish.ir.ops import RmsNorm
from planish.passes.calibration.data import Batch
from planish.passes.rotation_fusion import Rotatable, rotatable, rotated
from planish.passes.training.cayley import polar


@dataclass(frozen=True)
class Strength:
    """How unequal the elements are that norms give out, over all norms and tokens.

    Attributes:
        kurtosis: the mean fourth power over the square of the mean square; 3 for normal numbers.
        peak: the root of the mean, over tokens, of the largest square over the mean square of a token.
    """

    kurtosis: float
    peak: float


@dataclass(frozen=True)
class Injected:
    """A network with outliers, and how strong they were before and are now."""

    module: Module
    before: Strength
    after: Strength


@dataclass(frozen=True, eq=False)
class _Given:
    matrix: torch.Tensor


def inject(module: Module, batches: Sequence[Batch], channels: int = 4, seed: int = 0) -> Injected:
    """Turn the spaces over which norms are taken so that their principal axes lie on few channels.

    The principal axes of a space are those of the second moment of what norms give out on the batches. The first ones are
    mapped onto channels drawn by the seed, and all that is orthogonal to them moves as little as it can. The function is what
    it was, as by `rotation-fusion`, so gains of norms must be folded before.

    Args:
        module: with `forward`.
        batches: its inputs by name.
        channels: how many axes are mapped.

    Raises:
        InputError: when no normed space may be rotated.
    """
    found = rotatable(module, "normed")
    if not found.chosen:
        raise InputError(f"no space over which norms are taken can be turned: {'; '.join(found.refusals[:1])}")
    generator = torch.Generator().manual_seed(seed)
    turns = []
    for number, size in enumerate(found.sizes):
        _, axes = torch.linalg.eigh(_moment(module, batches, found, number))
        onto = torch.eye(size, dtype=torch.float64)[:, torch.randperm(size, generator=generator)[:channels]]
        first = axes.flip(1)[:, :channels]
        rest = (torch.eye(size) - onto @ onto.T) @ (torch.eye(size) - first @ first.T)
        turns.append(_Given(polar(onto @ first.T + rest)))
    after = rotated(module, found, turns).module
    return Injected(after, strength(module, batches), strength(after, batches))


def strength(module: Module, batches: Sequence[Batch]) -> Strength:
    """How strong the outliers are on the batches."""
    squares, fourths, peaks, count, tokens = 0.0, 0.0, 0.0, 0, 0
    for rows in _normed(module, batches):
        square = rows.square()
        squares, fourths = squares + float(square.sum()), fourths + float(square.square().sum())
        peaks += float((square.amax(1) / square.mean(1)).sum())
        count, tokens = count + rows.numel(), tokens + len(rows)
    return Strength(fourths / count / (squares / count) ** 2, (peaks / tokens) ** 0.5)


def _moment(module: Module, batches: Sequence[Batch], found: Rotatable, number: int) -> torch.Tensor:
    """The sum of outer products of what norms over one space give out, float64 [n, n]."""
    space, size = found.chosen[number], found.sizes[number]
    total = torch.zeros(size, size, dtype=torch.float64)

    def of_space(node: Node) -> bool:
        return found.spaces.term(node.output, node.output.type.rank - 1) is space.atom

    nodes = {node for node in module.functions["forward"].nodes if isinstance(node.op, RmsNorm) and of_space(node)}
    for rows in _normed(module, batches, nodes):
        total += rows.T @ rows
    return total


def _normed(module: Module, batches: Sequence[Batch], only: set[Node] | None = None) -> list[torch.Tensor]:
    """What norms give out for all tokens, float64 [tokens, n], without rows of zeros."""
    found: list[torch.Tensor] = []

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        if isinstance(node.op, RmsNorm) and (only is None or node in only):
            rows = results[0].flatten(0, -2).double()
            found.append(rows[rows.abs().amax(1) > 0])

    for batch in batches:
        Interpreter(module, observe=observe).run("forward", batch)
    return found
