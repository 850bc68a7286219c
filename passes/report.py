"""What the manager records of every pass: for people as a table, for programs as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planish.ir.module import Module
from planish.passes.checking.outcome import CHECKED, COMPARED, SKIPPED, Outcome


def param_bytes(module: Module) -> int:
    """Bytes of all parameters as they are stored."""
    return sum(p.nbytes for p in module.params.values())


def node_count(module: Module) -> int:
    return sum(len(f.nodes) for f in module.functions.values())


@dataclass(frozen=True)
class PassRecord:
    """One execution of one pass.

    Attributes:
        name, options, contract: the pass.
        matches: how often it rewrote something; `changed` is whether the structural hash differs.
        seconds: time of the pass itself; `outcome.seconds` is that of its check.
        nodes, nbytes: before and after.
        outcome: what the check found, None when checks were off or nothing changed.
        refusals: where the pass did nothing, and why.
    """

    name: str
    options: Mapping[str, Any]
    contract: str
    matches: int
    changed: bool
    seconds: float
    nodes: tuple[int, int]
    nbytes: tuple[int, int]
    outcome: Outcome | None = None
    refusals: tuple[str, ...] = ()
    details: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def check(self) -> str:
        """The check in a few words."""
        if self.outcome is None:
            return "not checked" if self.changed else "unchanged"
        parts = [f"{self.outcome.count(s)} regions {s}" for s in (CHECKED, COMPARED) if self.outcome.count(s)]
        if self.outcome.whole:
            worst = max(self.outcome.whole, key=lambda o: o.difference / o.allowed if o.allowed else o.difference)
            parts.append(f"whole {worst.difference:.2g} of {worst.allowed:.2g}")
        if self.outcome.added:
            parts.append(f"the pass's own law for {', '.join(self.outcome.added)}")
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
        return ", ".join(parts) or "equal by structure"

    @property
    def skipped(self) -> list[str]:
        """Sentences about what was not checked."""
        if self.outcome is None:
            return []
        regions = [f"{r.place}: {r.sentence}" for r in self.outcome.regions if r.status == SKIPPED]
        return [*self.outcome.skipped, *dict.fromkeys(regions)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        checked = self.outcome
        return {
            "pass": self.name,
            "options": dict(self.options),
            "contract": self.contract,
            "matches": self.matches,
            "changed": self.changed,
            "seconds": self.seconds,
            "nodes": list(self.nodes),
            "bytes": list(self.nbytes),
            "refusals": list(self.refusals),
            "details": dict(self.details),
            "check": None
            if checked is None
            else {
                "seconds": checked.seconds,
                "regions": {status: checked.count(status) for status in (CHECKED, COMPARED, SKIPPED)},
                "largest_bound": max((r.bound for r in checked.regions), default=0.0),
                "largest_use": checked.largest_use,
                "whole": [{"place": w.place, "difference": w.difference, "allowed": w.allowed} for w in checked.whole],
                "added": list(checked.added),
                "skipped": self.skipped,
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The records of one run of the manager, in order."""

    passes: tuple[PassRecord, ...] = ()
    stopped: str = ""
    """Why the run ended before the last pass, if it did."""

    def as_dict(self) -> dict[str, Any]:
        return {"passes": [r.as_dict() for r in self.passes], "stopped": self.stopped}

    def rows(self) -> list[dict[str, str]]:
        """One mapping from column titles to cells for each pass."""
        return [
            {
                "pass": r.name,
                "contract": r.contract,
                "matches": str(r.matches),
                "nodes": _change(*r.nodes, str),
                "bytes": _change(*r.nbytes, _bytes),
                "time": f"{r.seconds:.2f} s",
                "check": r.check,
                "check time": "" if r.outcome is None else f"{r.outcome.seconds:.2f} s",
            }
            for r in self.passes
        ]

    def __str__(self) -> str:
        """A table in plain text."""
        rows = self.rows()
        if not rows:
            return "no passes ran"
        titles = list(rows[0])
        widths = {t: max(len(t), *(len(r[t]) for r in rows)) for t in titles}
        lines = ["  ".join(r[t].ljust(widths[t]) for t in titles).rstrip() for r in [{t: t for t in titles}, *rows]]
        lines += [f"{r.name}: skipped {sentence}" for r in self.passes for sentence in r.skipped]
        return "\n".join([*lines, self.stopped] if self.stopped else lines)


def _change(before: int, after: int, text: Any) -> str:
    return str(text(before)) if before == after else f"{text(before)} -> {text(after)}"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
