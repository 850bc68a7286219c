"""`planish reproduce`: run again what failed."""

from __future__ import annotations

from pathlib import Path

import typer

from planish.cli.output import JSON, print_json, print_mapping
from planish.cli.reports import reports_as_json, show_reports


def reproduce_failure(
    path: Path = typer.Argument(..., help="A reproducer that a failing pass left behind."),
    bisect: bool = typer.Option(False, "--bisect", help="Find the guilty pass of the pipeline."),
    json: bool = JSON,
) -> None:
    """Run a reproducer: it fails as it did (exit code 3), or passes if the fault is gone."""
    if bisect:
        _bisect(path, json)
        return
    from planish.passes.reproducer import rerun

    _, report = rerun(path)
    if json:
        print_json(reports_as_json([report]))
    else:
        show_reports([report])


def _bisect(path: Path, json: bool) -> None:
    from planish.passes.bisect import bisect
    from planish.passes.pass_base import Context
    from planish.passes.recipe import parse_recipe
    from planish.passes.reproducer import read_reproducer

    module, document = read_reproducer(path)
    recipe = parse_recipe(document["recipe"], str(path))
    found = bisect(module, recipe.passes, context=Context(seed=recipe.seed))
    guilty = (
        None if found is None else {"pass": found.step.name, "number": found.number, "options": found.step.options()}
    )
    if json:
        print_json(guilty)
    else:
        print_mapping("Bisection", guilty or {"pass": "none: the whole pipeline keeps what the module computes"})
