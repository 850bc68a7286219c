"""Scales by search: smaller ones clip the largest weights and hold the others more finely."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planish.ir.encodings import Grouped
from planish.ir.encodings.slices import encoded_by_rows

FRACTIONS = tuple(1 - step / 100 for step in range(80))
"""Of the scale of plain rounding; the first is 1, so that the search is never worse than that."""


def encode_searched(encoding: Grouped, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The storage of `weight` with, in each group, the fraction of the encoding's own scale that leaves the smallest squared
    error; of equal ones the largest."""

    def of_rows(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        groups = encoding.groups(rows)
        return encoding.packed(encoding.rounded(groups, best_fractions(encoding, groups)))

    return encoded_by_rows(weight, of_rows)


def best_fractions(encoding: Grouped, groups: torch.Tensor, fractions: Sequence[float] = FRACTIONS) -> torch.Tensor:
    """For each of the groups along the last axis (float64), the fraction that leaves the smallest squared error, kept with
    size 1."""
    best = torch.ones(*groups.shape[:-1], 1, dtype=torch.float64)
    least = torch.full_like(best, torch.inf)
    for fraction in fractions:
        error = (encoding.restored(encoding.rounded(groups, fraction)) - groups).square().sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, fraction, best), torch.where(better, error, least)
    return best
