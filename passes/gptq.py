"""GPTQ: weights rounded column by column, what is lost in one made up for by the columns that are still to come.

For a linear map y = x W^T and H = mean over tokens of x x^T, the mean squared error of the outputs is tr(E H E^T), E the
error of the weights. With H = R R^T, R upper triangular, and U = R^-1, the columns are rounded one after the other: an error
e in column j costs at least (e / U_jj)^2 whatever follows, and costs exactly that when e U_jk / U_jj is taken from each later
column k. Source: GPTQ (Frantar et al., 2023); scales of a group are fitted to the columns as they are when the group
begins, which the paper's code does not do for groups within its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from planish.ir.encodings.grouped import Rounded
from planish.ir.errors import InputError
from planish.passes.rounding_grids import RoundingGrid

BLOCK = 128
"""Columns after which what is lost is passed on to all the others, as one product of matrices."""
ROWS = 2048
"""Rows rounded at a time: rows do not see each other, and columns of so many stay in the caches."""


@dataclass(frozen=True)
class Rounding:
    """A weight by GPTQ.

    Attributes:
        storage: the encoding's fields.
        loss: the mean squared error of the outputs over the calibration tokens, damping included.
    """

    storage: dict[str, torch.Tensor]
    loss: float


@dataclass(frozen=True)
class Curvature:
    """What errors of a weight cost.

    Attributes:
        hessian: H + d I, float64 [in, in].
        factor: U, upper triangular with U^T U its inverse.
    """

    hessian: torch.Tensor
    factor: torch.Tensor


def curvature(hessian: torch.Tensor, damping: float, what: str) -> Curvature:
    """H + d I with d = `damping` times the mean of H's diagonal, and the factor of its inverse.

    A feature that is zero in every token has no say in the error: its row of H is that of the identity, so that its weights
    are rounded to nearest. `hessian` is float64 [in, in] and is overwritten.

    Raises:
        InputError: when H is not finite, or H + d I not positive definite.
    """
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(hessian).all()):
        raise InputError(
            f"the Hessian of {what} holds NaN or infinity: the calibration data overflow in front of it; "
            f"check the data and the model's own outputs on them"
        )
    dead = diagonal == 0
    diagonal += damping * diagonal.mean()
    diagonal[dead] = 1.0
    # With rows and columns in reverse, the lower factor of Cholesky is the upper one that is wanted.
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if int(failed):
        raise InputError(
            f"the Hessian of {what} is not positive definite with damping {damping:g}; calibrate with more tokens than "
            f"its {len(hessian)} input features, or raise `damping`"
        )
    _invert_lower(lower)
    return Curvature(hessian, lower.flip(0, 1))


def _invert_lower(matrix: torch.Tensor) -> None:
    """Invert a lower triangular matrix where it is: halves first, then the block between them."""
    size = len(matrix)
    if size <= BLOCK:
        identity = torch.eye(size, dtype=matrix.dtype)
        matrix.copy_(torch.linalg.solve_triangular(matrix, identity, upper=False))
        return
    half = size // 2
    _invert_lower(matrix[:half, :half])
    _invert_lower(matrix[half:, half:])
    matrix[half:, :half] = -(matrix[half:, half:] @ (matrix[half:, :half] @ matrix[:half, :half]))


def gptq(
    weight: torch.Tensor,
    curvature: Curvature,
    grid: RoundingGrid,
    *,
    refine: int = 1,
    aim: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Rounding:
    """Round a weight.

    Args:
        weight: [out, in].
        curvature: of its inputs.
        grid: of its encoding (`rounding_grids.grid_of`).
        refine: how many times scales are put where they fit the codes best (least squares in the norm of H) and all is
            rounded again with them; each row keeps the best it has seen. The search knows nothing of the columns that will be
            moved: with few levels the scales that it finds are too small.
        aim: what is rounded in place of rows of the weight [rows, in], float64; the rows themselves when None.
    """
    parts, losses = [], []
    factor, hessian = curvature.factor, curvature.hessian
    for rows in weight.split(ROWS):
        wanted = rows.to(torch.float64) if aim is None else aim(rows.to(torch.float64))
        rounded, loss = _round_rows(wanted, factor, grid, None)
        for _ in range(refine):
            rounded, loss = _refitted(wanted, hessian, grid, rounded, loss)
            again, after = _round_rows(wanted, factor, grid, rounded)
            rounded, loss = _better(rounded, loss, again, after)
        if refine:
            rounded, loss = _refitted(wanted, hessian, grid, rounded, loss)
        parts.append(grid.packed(rounded))
        losses.append(float(loss.sum()))
    # What has no rows, such as a scale of the whole tensor, is the same in all parts.
    storage = {f: torch.cat([part[f] for part in parts]) if first.dim() else first for f, first in parts[0].items()}
    return Rounding(storage, sum(losses) / len(weight))


def _round_rows(
    wanted: torch.Tensor, factor: torch.Tensor, grid: RoundingGrid, scaled: Rounded | None
) -> tuple[Rounded, torch.Tensor]:
    """Rows [rows, in] rounded, with the scales of `scaled` or by search, and the loss of each row."""
    columns, group = wanted.t().clone(memory_format=torch.contiguous_format), grid.group
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    loss = torch.zeros(columns.shape[1], dtype=torch.float64)
    scales: list[torch.Tensor] = []
    zeros: list[torch.Tensor] = []
    for start, stop in _blocks(len(columns), group):
        errors = torch.empty(stop - start, columns.shape[1], dtype=torch.float64)
        for j in range(start, stop):
            if j % group == 0:
                scale, zero = _fitted(columns[j : j + group].t().contiguous(), grid, scaled, j // group)
                step = scale.to(torch.float64)
                scales.append(scale)
                zeros += [] if zero is None else [zero]
            column = columns[j].unsqueeze(1)
            code = grid.codes(column, step, zero)
            error = (column - grid.restored(code, step, zero)).squeeze(1) / factor[j, j]
            codes[j], errors[j - start] = code.squeeze(1), error
            columns[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
        columns[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
        loss += errors.square().sum(0)
    grouped = codes.t().unflatten(1, (-1, group))
    return Rounded(grouped, torch.stack(scales, 1), torch.stack(zeros, 1) if zeros else None), loss


def _fitted(
    ahead: torch.Tensor, grid: RoundingGrid, scaled: Rounded | None, number: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points (rows, 1) of a group whose columns, as they are now, are `ahead`."""
    if scaled is None:
        return grid.fitted(ahead)
    return scaled.scales[:, number], None if scaled.zeros is None else scaled.zeros[:, number]


def _refitted(
    wanted: torch.Tensor, hessian: torch.Tensor, grid: RoundingGrid, rounded: Rounded, loss: torch.Tensor
) -> tuple[Rounded, torch.Tensor]:
    """One group after the other, the scale that fits the codes best while the others stay, where that is better once it is
    stored: a change c costs c^2 a - 2 c b, with a the group's own curvature along its levels and b the slope there."""
    levels = grid.levels(rounded.codes, rounded.zeros)
    slopes = (wanted - grid.restored(rounded.codes, rounded.scales, rounded.zeros).flatten(1)) @ hessian
    scales, size = rounded.scales.clone(), levels.shape[2]
    for g in range(levels.shape[1]):
        here, level, scale = slice(g * size, (g + 1) * size), levels[:, g], scales[:, g].to(torch.float64)
        pull = level @ hessian[here, g * size :]
        a = (pull[:, :size] * level).sum(1, keepdim=True)
        b = (slopes[:, here] * level).sum(1, keepdim=True)
        moved = grid.kept(torch.where(a > 0, scale + b / a, scale))
        change = moved.to(torch.float64) - scale
        gain = change * (change * a - 2 * b)
        taken = gain < 0
        scales[:, g] = torch.where(taken, moved, scales[:, g])
        slopes[:, g * size :] -= torch.where(taken, change, 0.0) * pull
        loss = loss + torch.where(taken, gain, 0.0).squeeze(1)
    return Rounded(rounded.codes, scales, rounded.zeros), loss


def _better(one: Rounded, loss: torch.Tensor, other: Rounded, after: torch.Tensor) -> tuple[Rounded, torch.Tensor]:
    """Row by row the one that loses less."""
    take = (after < loss).reshape(-1, 1, 1)
    zeros = None if one.zeros is None or other.zeros is None else torch.where(take, other.zeros, one.zeros)
    codes, scales = torch.where(take, other.codes, one.codes), torch.where(take, other.scales, one.scales)
    return Rounded(codes, scales, zeros), torch.minimum(loss, after)


def _blocks(columns: int, group: int) -> Iterator[tuple[int, int]]:
    """Runs of at most `BLOCK` columns that end where groups do, or lie within one."""
    size = group * (BLOCK // group) if group <= BLOCK else BLOCK
    period = max(size, group)
    for first in range(0, columns, period):
        for start in range(first, min(first + period, columns), size):
            yield start, min(start + size, first + period, columns)


__all__ = ["Curvature", "Rounding", "curvature", "gptq"]
