"""`planish bench`: how fast an artifact reads and writes tokens, or how long each step of a function takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from planish.cli.output import JSON, print_json, table
from planish.cli.source import open_generator
from planish.ir import InputError


def bench_artifact(
    artifact: Path = typer.Argument(..., help="An artifact's folder."),
    prompt: int = typer.Option(512, help="Tokens to read at once."),
    tokens: int = typer.Option(64, help="Tokens to write one by one."),
    repeats: int = typer.Option(5, help="Repeats; medians are shown."),
    threads: int = typer.Option(None, help="Threads to use at most; all cores by default."),
    device: str = typer.Option(None, help="Run on another machine: rpc:HOST:PORT of its RPC server."),
    steps: bool = typer.Option(False, "--steps", help="Measure each step of a function against the build report."),
    function: str = typer.Option(None, help="With --steps: the function; decode or forward by default."),
    plot: Path = typer.Option(None, help="With --steps: draw the roofline into this file, .png or .svg."),
    json: bool = JSON,
) -> None:
    """Measure prefill and decode speed in tokens a second or, with --steps, the time of each step."""
    if steps:
        if device is not None:
            raise InputError("steps are timed on the processor of this process alone; leave out --device")
        _steps(artifact, function, repeats, threads, plot, json)
        return
    if function is not None or plot is not None:
        raise typer.BadParameter("--function and --plot need --steps")
    from planish.speed import measure_speed

    speed = measure_speed(open_generator(artifact, threads, device), prompt=prompt, tokens=tokens, repeats=repeats)
    if json:
        print_json(speed)
        return
    table("Speed", ("", "tokens/s"), [(name, f"{value:.1f}") for name, value in speed.items()])


def _steps(
    artifact: Path, function: str | None, repeats: int, threads: int | None, plot: Path | None, json: bool
) -> None:
    import planish
    from planish.cli.picture import check_picture
    from planish.cli.roofline import WHAT, draw_roofline
    from planish.speed import measure_steps

    if plot is not None:
        # What cannot be drawn is refused before anything takes time.
        check_picture(plot, WHAT)
    program = planish.load(artifact, threads=threads)
    found = measure_steps(program, function=function, repeats=repeats, threads=threads)
    if plot is not None:
        draw_roofline(found, plot)
    if json:
        print_json(found)
        return
    sizes = ", ".join(f"{symbol}={size}" for symbol, size in found["sizes"].items())
    columns = ("operations", "kernel", "bytes", "work", "floor µs", "measured µs", "share")
    rows = [(", ".join(s["operations"]), s["kernel"], *_figures(s)) for s in found["steps"]]
    total = ("all steps", "", *_figures(found["total"]))
    table(f"Steps of {found['function']}" + (f" ({sizes})" if sizes else ""), columns, [*rows, total])


def _figures(step: Mapping[str, Any]) -> tuple[object, ...]:
    times = (f"{step[key] * 1e6:.3f}" for key in ("floor_seconds", "seconds"))
    return (step["bytes"], step["work"], *times, f"{step['share']:.1%}")
