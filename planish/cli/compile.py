"""`planish compile`: a checkpoint folder in, an artifact out."""

from __future__ import annotations

from pathlib import Path

import typer

import planish
from planish.cli import compressing
from planish.cli.output import JSON, megabytes, print_json, print_mapping, progress
from planish.cli.reports import reports_as_json, show_reports
from planish.targets import open_target


def compile_model(
    source: Path = typer.Argument(..., help="A transformers checkpoint folder, or a .pt2 file."),
    recipe: Path = compressing.RECIPE,
    target: str = typer.Option("host", "--target", help="The machine to compile for; see `planish targets`."),
    out: Path = typer.Option(..., "--out", help="The artifact's folder."),
    calibration: Path = compressing.CALIBRATION,
    samples: int = compressing.SAMPLES,
    length: int = compressing.LENGTH,
    workspace: Path = compressing.WORKSPACE,
    check: bool = compressing.CHECK,
    json: bool = JSON,
) -> None:
    """Trace, compress, compile and save a model."""
    # An unknown target is refused before anything takes time.
    open_target(target)
    model, before = compressing.compressed(
        source, recipe, calibration=calibration, samples=samples, length=length, workspace=workspace, check=check
    )
    with progress("preparing") as move:
        model = planish.prepare(model, target, check=check, progress=move)
    with progress("building") as move:
        artifact = planish.build(model, target, check=check, progress=move)
        folder = artifact.save(out)
    size = sum(f.stat().st_size for f in folder.iterdir())
    if json:
        passes = reports_as_json(model.reports)
        print_json(
            {
                "artifact": str(folder),
                "bytes": size,
                "weights_before": before,
                "weights": model.nbytes,
                "passes": passes,
            }
        )
        return
    show_reports(model.reports)
    print_mapping(
        "Artifact",
        {
            "folder": folder,
            "size": megabytes(size),
            "weights before": megabytes(before),
            "weights": megabytes(model.nbytes),
        },
    )
