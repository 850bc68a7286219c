"""What commands share that apply a recipe: its options, and the model that comes of them."""

from __future__ import annotations

from pathlib import Path

import typer

import planish
from planish.calibration import text_calibration
from planish.cli.output import progress
from planish.cli.source import open_model
from planish.ir import InputError
from planish.model import Model

RECIPE = typer.Option(None, "--recipe", help="A recipe (YAML); without it weights stay as they are.")
CALIBRATION = typer.Option(None, "--calibration", help="A text to observe the model on, for passes that do.")
SAMPLES = typer.Option(128, "--calibration-samples", help="How many windows of that text.")
LENGTH = typer.Option(512, "--calibration-length", help="Tokens in a window.")
WORKSPACE = typer.Option(
    None, "--workspace", help="A folder for finished weights: a calibrated run that was killed goes on from there."
)
CHECK = typer.Option(True, "--check/--no-check", help="Hold every pass to its contract.")


def compressed(
    source: Path,
    recipe: Path | None,
    *,
    calibration: Path | None,
    samples: int,
    length: int,
    workspace: Path | None,
    check: bool,
) -> tuple[Model, int]:
    """The model of a checkpoint after its recipe, and the bytes of its weights before."""
    if calibration is None and workspace is not None:
        raise InputError("--workspace keeps the work of a calibrated run; give --calibration too")
    if recipe is None and calibration is not None:
        raise InputError("--calibration is for the passes of a recipe; give --recipe too")
    model = open_model(source, check=check)
    before = model.nbytes
    if recipe is None:
        return model, before
    data = None
    if calibration is not None:
        data = text_calibration(model, calibration, samples=samples, length=length, workspace=workspace)
    with progress("compressing") as move:
        return planish.compress(model, recipe, check=check, calibration=data, progress=move), before
