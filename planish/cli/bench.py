"""`planish bench`: how fast an artifact reads and writes tokens."""

from __future__ import annotations

from pathlib import Path

import typer

from planish.cli.output import JSON, print_json, table
from planish.cli.source import open_generator


def bench_artifact(
    artifact: Path = typer.Argument(..., help="An artifact's folder."),
    prompt: int = typer.Option(512, help="Tokens to read at once."),
    tokens: int = typer.Option(64, help="Tokens to write one by one."),
    repeats: int = typer.Option(5, help="Repeats; medians are shown."),
    threads: int = typer.Option(None, help="Threads to use at most; all cores by default."),
    device: str = typer.Option(None, help="Run on another machine: rpc:HOST:PORT of its RPC server."),
    json: bool = JSON,
) -> None:
    """Measure prefill and decode speed, in tokens a second."""
    from planish.speed import measure_speed

    speed = measure_speed(open_generator(artifact, threads, device), prompt=prompt, tokens=tokens, repeats=repeats)
    if json:
        print_json(speed)
        return
    table("Speed", ("", "tokens/s"), [(name, f"{value:.1f}") for name, value in speed.items()])
