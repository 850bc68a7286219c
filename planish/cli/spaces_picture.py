"""Spaces as a picture: each between the parameters that write it and those that read it, with what keeps it from more."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.cli.picture import write_picture

LINE, WIDE = 0.19, 50
"""Inches between lines, and letters in one."""
COLOURS = {
    "nothing": "#d9d9d9",
    "permutations": "#fdd0a2",
    "rotations that fix the sum": "#c7e9c0",
    "rotations": "#a1d99b",
    "every invertible matrix": "#9ecae1",
}


def draw_spaces(rows: Sequence[Sequence[str]], path: Path) -> None:
    """Draw rows of `show_spaces`: size, times, group, scales, writers, readers, what is carried, reasons.

    Raises:
        InputError: when the file cannot be written.
    """
    from matplotlib.figure import Figure

    cells = [
        [_lines(writers), _lines(readers), _lines(carried), _lines(why)] for *_, writers, readers, carried, why in rows
    ]
    heights = [max(3, *(len(cell) for cell in row[:2]), len(row[2]) + len(row[3]) + 2) for row in cells]
    figure = Figure(figsize=(15, 0.4 + LINE * sum(h + 1 for h in heights)), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 15), ylim=(sum(h + 1 for h in heights), 0))
    axes.axis("off")
    top = 0.5
    for row, (writers, readers, carried, why), height in zip(rows, cells, heights):
        size, times, group, scales = row[:4]
        middle = top + height / 2
        _text(axes, 4.8, middle, writers, "right")
        _text(axes, 10.4, middle, readers, "left")
        many = f"{times} times {size} indices" if times != "1" else f"{size} indices"
        own = [] if scales == "0" else ["a scale" if scales == "1" else f"{scales} scales"]
        lines = [f"{many}: {group}", *own, *carried, *why]
        axes.text(
            7.5, middle, "\n".join(lines), ha="center", va="center", fontsize=8,
            bbox={"boxstyle": "round,pad=0.4", "facecolor": COLOURS[group], "edgecolor": "#636363"},
        )  # fmt: skip
        if writers:
            _arrow(axes, 4.9, 5.5, middle)
        if readers:
            _arrow(axes, 9.5, 10.2, middle)
        top += height + 1
    write_picture(figure, path)


def _lines(text: str) -> list[str]:
    return [line for part in text.split(", ") for line in textwrap.wrap(part, WIDE)]


def _text(axes: Any, x: float, y: float, lines: Sequence[str], side: str) -> None:
    axes.text(x, y, "\n".join(lines), ha=side, va="center", fontsize=7, family="monospace")


def _arrow(axes: Any, start: float, end: float, y: float) -> None:
    axes.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "->", "color": "#636363"})
