"""Comparing two tensors: within derived bounds, or by what float32 costs the source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from planish.ir.bounds import Bounded

FACTOR = 4.0
LOOSEST = 1e-6
"""A bound above this part of the largest value says too little: what it allows counts as not checked."""
FLOAT32 = 2.0**-24
FLOAT64 = 2.0**-40
"""What the float64 evaluation itself may be off, far above its roundings and far below those of any other dtype."""


@dataclass(frozen=True)
class Comparison:
    """The largest difference as a part of what was allowed, the allowance relative to the largest value, and a sentence
    if it failed."""

    used: float
    bound: float
    sentence: str = ""
    offending: torch.Tensor | None = None
    """The elements that differ by too much, or about which the bound says too little."""


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float64)


def _equal(source: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where nothing is left to compare: the bits agree, or the source itself is undefined (NaN)."""
    return (source == other) | source.isnan()


def _largest(x: torch.Tensor) -> float:
    """The largest finite magnitude, 0 for none."""
    finite = x[torch.isfinite(x)].abs()
    return float(finite.max()) if finite.numel() else 0.0


def _difference(a: torch.Tensor, b: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    distance = torch.nan_to_num((a - b).abs(), nan=math.inf, posinf=math.inf)
    return torch.where(equal, 0.0, distance)


def within_bounds(source: Bounded, result: Bounded, ignore: torch.Tensor | None = None) -> Comparison:
    """Whether two float64 evaluations agree within 4 times the sum of their bounds, and whether that says anything.

    Elements at which `ignore` is true are not compared.
    """
    a, b = _wide(source.value), _wide(result.value)
    if a.shape != b.shape:
        return Comparison(math.inf, 0.0, f"has shape {list(b.shape)} instead of {list(a.shape)}")
    equal = _equal(a, b) if ignore is None else _equal(a, b) | ignore
    difference = _difference(a, b, equal)
    allowed = FACTOR * (source.bound() + result.bound())
    used = torch.where(equal | torch.isinf(allowed), 0.0, difference / allowed.clamp(min=1e-320))
    worst = float(used.max()) if used.numel() else 0.0
    scale = _largest(a) or 1.0
    relative = torch.where(equal, 0.0, allowed / scale)
    bound = float(relative.max()) if used.numel() else 0.0
    if worst <= 1.0 and bound <= LOOSEST:
        return Comparison(worst, bound)
    at = _index(used)
    if worst > 1.0:
        sentence = (
            f"differs in float64: {float(b[at]):.9g} instead of {float(a[at]):.9g} at {list(at)}, off by "
            f"{float(difference[at]):.3g} where rounding explains {float(allowed[at]):.3g}"
        )
    else:
        known = f"its rounding is only known to stay below {bound:.3g} of its value"
        sentence = f"could not be checked: {known}, more than {LOOSEST:g}"
    return Comparison(worst, bound, sentence, (used > 1.0) | (relative > LOOSEST))


def in_working_dtype(
    result: Bounded, exact: torch.Tensor, source: Bounded, ignore: torch.Tensor | None = None
) -> Comparison:
    """Whether a result in its own dtypes is as near to its float64 evaluation as the source's dtypes explain.

    `result` and `source` are evaluated in their declared dtypes, the bound of `result` with no unit roundoff above the
    source's coarsest one; `exact` is the result's float64 evaluation from the same rounded values at the cut. Elements
    that overflow in the source are not compared.
    """
    y, y64 = _wide(result.value), _wide(exact)
    equal = _equal(y, y64) | ~torch.isfinite(_wide(source.value))
    equal = equal if ignore is None else equal | ignore
    difference = _difference(y, y64, equal)
    allowed = source.bound() + result.bound() + FLOAT64 * y64.abs()
    used = torch.where(equal | torch.isinf(allowed), 0.0, difference / allowed.clamp(min=1e-320))
    worst = float(used.max()) if used.numel() else 0.0
    if worst <= 1.0:
        return Comparison(worst, 0.0)
    at = _index(used)
    return Comparison(
        worst, 0.0,
        f"loses precision: in its own dtypes it computes {float(y[at]):.6g} instead of {float(y64[at]):.6g} at {list(at)}, "
        f"off by {float(difference[at]):.3g} where the source's dtypes explain {float(allowed[at]):.3g}",
        used > 1.0,
    )  # fmt: skip


def by_float32(
    source: torch.Tensor, result: torch.Tensor, source32: torch.Tensor, ignore: torch.Tensor | None = None
) -> tuple[float, float, str]:
    """The largest difference in float64, what is allowed, and a sentence if it is more.

    Allowed is 4 times the largest difference that float32 makes to the source, and at least 4 float32 roundoffs of the
    largest value: a source that float32 happens to hit exactly proves no more than that. Integers and truth values must
    be equal, except where float32 turns the source's own.
    """
    a, b, c = _wide(source), _wide(result), _wide(source32)
    if a.shape != b.shape:
        return math.inf, 0.0, f"has shape {list(b.shape)} instead of {list(a.shape)}"
    equal = _equal(a, b) if ignore is None else _equal(a, b) | ignore
    own = _equal(a, c) if ignore is None else _equal(a, c) | ignore
    if not source.dtype.is_floating_point:
        equal = equal | ~own
    difference = _difference(a, b, equal)
    worst = float(difference.max()) if difference.numel() else 0.0
    rounding = torch.where(torch.isfinite(c), _difference(a, c, own), 0.0)
    allowed = FACTOR * max(float(rounding.max()) if rounding.numel() else 0.0, FLOAT32 * _largest(a))
    allowed = allowed if source.dtype.is_floating_point else 0.0
    if worst <= allowed:
        return worst, allowed, ""
    at = _index(difference)
    return worst, allowed, (
        f"differs in float64: {float(b[at]):.9g} instead of {float(a[at]):.9g} at {list(at)}, off by {worst:.3g} where 4 "
        f"times the source's own float32 difference is {allowed:.3g}"
    )  # fmt: skip


def measure(metric: str, source: torch.Tensor, result: torch.Tensor, ignore: torch.Tensor | None = None) -> float:
    """A lossy contract's metric; see `contract.Lossy`."""
    a, b = _wide(source), _wide(result)
    if ignore is not None:
        a, b = torch.where(ignore, 0.0, a), torch.where(ignore, 0.0, b)
    if metric == "kl_divergence":
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        # What has no chance takes no part, whatever chance the other gives it.
        rows = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1)
        return float(rows.mean())
    norm = float(a.norm())
    return float((a - b).norm()) / norm if norm else float((a - b).norm())


def _index(x: torch.Tensor) -> tuple[int, ...]:
    """The index of the largest element."""
    return tuple(int(i) for i in torch.unravel_index(x.argmax(), x.shape))
