"""The roofline of one function's steps as a picture: what each achieves, under what the machine could do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish.cli.picture import check_picture, write_picture

WHAT = "a roofline"
LABELLED = 5
"""How many different kernels are named, the slowest first."""


def draw_roofline(found: Mapping[str, Any], path: Path) -> None:
    """Draw what `measure_steps` found: a point for each step that computes, below the roof; written whole or not at all.

    Raises:
        InputError: as `check_picture`, and when the file cannot be written.
    """
    check_picture(path, WHAT)
    write_picture(_figure(found), path)


def _figure(found: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    points = [s for s in found["steps"] if s["work"] and s["bytes"]]
    intensities = [s["work"] / s["bytes"] for s in points]
    speeds = [s["work"] / s["seconds"] for s in points]
    axes.scatter(intensities, speeds, s=18, zorder=3)
    _roof(axes, found, intensities)
    named: set[str] = set()
    for step, x, y in zip(points, intensities, speeds):
        if step["kernel"] not in named and len(named) < LABELLED:
            named.add(step["kernel"])
            axes.annotate(step["kernel"], (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations per second")
    sizes = ", ".join(f"{symbol}={size}" for symbol, size in found["sizes"].items())
    left_out = len(found["steps"]) - len(points)
    note = f"; {left_out} steps only move bytes and have no place here" if left_out else ""
    axes.set_title(f"{found['function']} ({sizes}){note}" if sizes else f"{found['function']}{note}", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8)
    return figure


def _roof(axes: Any, found: Mapping[str, Any], intensities: Sequence[float]) -> None:
    """For each kind of arithmetic, what memory allows up to the machine's peak."""
    bandwidth, peaks = found["bytes_per_second"], found["operations_per_second"]
    ridges = {kind: peak / bandwidth if bandwidth else 1.0 for kind, peak in peaks.items()}
    places = [*ridges.values(), *intensities]
    for kind, peak in peaks.items():
        corners = [min(places) / 2, ridges[kind], max(places) * 2]
        roof = [min(peak, x * bandwidth) if bandwidth else peak for x in corners]
        axes.plot(corners, roof, linewidth=1.2, label=f"{kind}: {peak / 1e9:.0f} billion operations/s")
