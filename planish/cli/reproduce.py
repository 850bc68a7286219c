"""`planish reproduce`: run again what failed."""

from __future__ import annotations

from pathlib import Path

import typer

from planish.cli.output import JSON, print_json, table
from planish.cli.reports import reports_as_json, show_reports


def reproduce_failure(
    path: Path = typer.Argument(..., help="A reproducer that a failing pass left behind."),
    bisect: bool = typer.Option(False, "--bisect", help="Find the guilty pass of the pipeline."),
    json: bool = JSON,
) -> None:
    """Run a reproducer: it fails as it did (exit code 3), or passes if the fault is gone."""
    if bisect:
        from planish.passes.bisect import bisect_reproducer

        guilty = bisect_reproducer(path)
        print_json(guilty) if json else table("Bisection", ("", ""), list(guilty.items()))
        return
    from planish.passes.reproducer import rerun

    _, report = rerun(path)
    if json:
        print_json(reports_as_json([report]))
    else:
        show_reports([report])
