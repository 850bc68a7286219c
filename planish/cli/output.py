"""What commands print: tables and progress for people on standard error, JSON for programs on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

JSON = typer.Option(False, "--json", help="Print the result as JSON on standard output.")


@cache
def console() -> Console:
    """The terminal; standard error, so that standard output holds results only."""
    return Console(stderr=True, highlight=False)


def error_line(sentence: str) -> None:
    """One line, whatever the sentence holds."""
    console().print(f"error: {' '.join(sentence.split())}", style="red", markup=False, soft_wrap=True)


def print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people; numbers are right-aligned."""
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[number]) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Brackets are part of a name, such as a kernel's variant.
        shown.add_row(*(escape(str(cell)) for cell in row))
    console().print(shown)


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float)) or str(cell)[:1].isdigit()


def megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


@contextmanager
def progress(what: str) -> Iterator[Callable[[float, str], None]]:
    """A bar that a caller moves with (fraction between 0 and 1, phrase); nothing where no terminal shows it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bars:
        task = bars.add_task(what, total=1.0)

        def move(fraction: float, phrase: str) -> None:
            bars.update(task, completed=fraction, description=f"{what}: {phrase}")

        yield move


def print_mapping(title: str, facts: Mapping[str, object]) -> None:
    """Name and value, a row each."""
    table(title, ("", ""), [(name, value) for name, value in facts.items()])
