"""`planish verify`: how far two models are apart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

import planish
from planish.cli import CHECK_FAILED
from planish.cli.output import JSON, print_json, progress, table
from planish.cli.source import open_model


def verify_models(
    source: Path = typer.Argument(..., help="The reference: a checkpoint folder."),
    recipe: Path = typer.Option(None, "--recipe", help="Compare the reference with what this recipe makes of it."),
    other: Path = typer.Option(None, "--with", help="Compare the reference with this checkpoint folder."),
    budget: float = typer.Option(None, help="Fail (exit code 3) when the relative difference exceeds this."),
    seed: int = typer.Option(0, help="The seed of the drawn inputs."),
    json: bool = JSON,
) -> int:
    """Compare a model with a compressed or another version of itself, in float64."""
    if (recipe is None) == (other is None):
        raise typer.BadParameter("give either --recipe or --with")
    first = open_model(source)
    if other is not None:
        second = open_model(other)
    else:
        with progress("compressing") as move:
            second = planish.compress(first, recipe, check=False, progress=move)
    differences = planish.verify(first, second, seed=seed)
    if json:
        print_json([{**asdict(d), "exact": d.exact} for d in differences])
    else:
        rows = [
            (d.function, d.output, f"{d.largest:.3g}", f"{d.relative:.3g}", f"{d.rounding:.3g}", f"{d.agreement:.1%}")
            for d in differences
        ]
        table("Differences", ("function", "output", "largest", "relative", "float32 rounding", "same top-1"), rows)
    # Not a number is no difference within a budget.
    failed = budget is not None and any(not d.relative <= budget for d in differences)
    return CHECK_FAILED if failed else 0
