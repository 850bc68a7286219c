"""What a check found, region by region and for whole functions, as plain values for the report."""

from __future__ import annotations

from dataclasses import dataclass

CHECKED, COMPARED, SKIPPED, FAILED = "checked", "compared", "skipped", "failed"


@dataclass(frozen=True)
class RegionOutcome:
    """One region on one probe.

    Attributes:
        place: the function and the operation at which the region ends.
        begins: the operation with which the region begins.
        status: "checked" within a derived bound; "compared" by the rule of whole functions, because an operator has no
            bound; "skipped"; "failed".
        used: the largest difference as a part of what was allowed; above 1 is a failure.
        bound: the largest allowed difference relative to the largest value.
        sentence: why it was skipped or how it failed.
    """

    place: str
    status: str
    used: float = 0.0
    bound: float = 0.0
    sentence: str = ""
    begins: str = ""


@dataclass(frozen=True)
class WholeOutcome:
    """One output of one function on one probe: the difference in float64, and what was allowed.

    For a lossy contract these are the metric and its budget.
    """

    place: str
    difference: float
    allowed: float
    status: str = CHECKED
    sentence: str = ""


@dataclass(frozen=True)
class Outcome:
    """Everything one check found."""

    regions: tuple[RegionOutcome, ...] = ()
    whole: tuple[WholeOutcome, ...] = ()
    skipped: tuple[str, ...] = ()
    """Sentences about what was not checked at all."""
    added: tuple[str, ...] = ()
    """New functions: there is nothing to compare them with, the pass's own `ensures` is what holds them."""
    seconds: float = 0.0
    diverging: str = ""
    """The first operation that diverges, where something failed."""

    @property
    def failures(self) -> list[str]:
        """A sentence for each region and output that failed."""
        outcomes: list[RegionOutcome | WholeOutcome] = [*self.regions, *self.whole]
        return [f"{o.place}: {o.sentence}" for o in outcomes if o.status == FAILED]

    def count(self, status: str) -> int:
        """How many regions ended so."""
        return sum(1 for o in self.regions if o.status == status)

    @property
    def largest_use(self) -> float:
        """The largest part of an allowed difference that any region or output used."""
        uses = [o.used for o in self.regions if o.status != SKIPPED]
        uses += [o.difference / o.allowed for o in self.whole if o.status != SKIPPED and o.allowed > 0]
        return max(uses, default=0.0)
