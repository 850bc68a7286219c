"""Contracts: what a pass promises about the module it returns, as values that the manager can hold it to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from planish.ir.errors import PlanishError

METRICS = ("relative_error", "kl_divergence")


@dataclass(frozen=True)
class Exact:
    """The result computes the same function in exact arithmetic; only rounding may differ.

    Where the source gives NaN, its value is undefined and the result may be anything; infinities must be the same.
    """

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class Lossy:
    """The result may differ by at most `budget`, measured in float64 on every output of every function.

    Metrics: "relative_error", the Euclidean norm of the difference over the norm of the source's output;
    "kl_divergence", the mean over rows of KL(source || result) in nats, taking the softmax of the last axis.
    """

    metric: str
    budget: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise PlanishError(f"no metric is called {self.metric!r}; choose one of {', '.join(METRICS)}")
        if not self.budget > 0:
            raise PlanishError(f"a lossy contract needs a budget above zero, got {self.budget}")

    def __str__(self) -> str:
        return f"lossy({self.metric} <= {self.budget:g})"


@dataclass(frozen=True)
class Refines:
    """The result computes the same function on a declared part of its results.

    `where` names a boolean input: results are compared only at the indices at which it is true. An axis of a result
    belongs to an axis of that input when both have the same symbolic size; a result without those axes is compared
    everywhere. `output` names a result that is compared only at the indices `among` of its last axis, and so is everything
    else whose last axis has that size.
    """

    where: str | None = None
    output: str | None = None
    among: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = [] if self.where is None else [f"where {self.where}"]
        if self.output is not None:
            parts.append(f"{len(self.among)} indices of {self.output}")
        return f"refines({', '.join(parts)})"


Contract: TypeAlias = "Exact | Lossy | Refines"
