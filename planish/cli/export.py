"""`planish export`: a checkpoint folder in, the file of another runtime out."""

from __future__ import annotations

from pathlib import Path

import typer

import planish
from planish.cli import compressing
from planish.cli.output import JSON, megabytes, print_json, print_mapping
from planish.cli.reports import reports_as_json, show_reports
from planish.exporting import check_format


def export_model(
    source: Path = typer.Argument(..., help="A transformers checkpoint folder."),
    recipe: Path = compressing.RECIPE,
    format: str = typer.Option("compressed-tensors", "--format", help='"compressed-tensors" or "gguf".'),
    out: Path = typer.Option(..., "--out", help="The folder, or for gguf the file; it must not exist yet."),
    calibration: Path = compressing.CALIBRATION,
    samples: int = compressing.SAMPLES,
    length: int = compressing.LENGTH,
    workspace: Path = compressing.WORKSPACE,
    check: bool = compressing.CHECK,
    json: bool = JSON,
) -> None:
    """Trace, compress, and write what other runtimes read."""
    # An unknown format is refused before anything takes time.
    check_format(format)
    model, before = compressing.compressed(
        source, recipe, calibration=calibration, samples=samples, length=length, workspace=workspace, check=check
    )
    written = planish.export(model, out, format)
    files = [written] if written.is_file() else list(written.iterdir())
    size = sum(file.stat().st_size for file in files)
    if json:
        passes = reports_as_json(model.reports)
        print_json({"written": str(written), "bytes": size, "weights_before": before, "passes": passes})
        return
    show_reports(model.reports)
    print_mapping("Export", {"written": written, "size": megabytes(size), "weights before": megabytes(before)})
