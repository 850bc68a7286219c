"""`planish run`: generate text from an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from planish.cli.output import JSON, print_json
from planish.cli.source import open_generator


def run_model(
    artifact: Path = typer.Argument(..., help="An artifact's folder."),
    prompt: str = typer.Argument(..., help="The text to continue; '-' reads standard input."),
    max_new_tokens: int = typer.Option(64, help="At most this many new tokens."),
    temperature: float = typer.Option(0.0, help="0 takes the likeliest token; higher values sample."),
    top_p: float = typer.Option(1.0, help="Sample from the likeliest tokens of this total probability."),
    seed: int = typer.Option(0, help="The seed of sampling."),
    stop: list[str] = typer.Option([], help="Stop before this text; may be given several times."),
    chat: bool = typer.Option(False, help="Wrap the prompt in the tokenizer's chat template."),
    threads: int = typer.Option(None, help="Threads to use at most; all cores by default."),
    device: str = typer.Option(None, help="Run on another machine: rpc:HOST:PORT of its RPC server."),
    json: bool = JSON,
) -> None:
    """Continue a prompt; text is printed as it is generated."""
    program = open_generator(artifact, threads, device)
    text = sys.stdin.read() if prompt == "-" else prompt
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": tuple(stop),
        "chat": chat,
    }
    if json:
        print_json({"prompt": text, "text": program.generate(text, **options)})
        return
    for piece in program.stream(text, **options):
        typer.echo(piece, nl=False)
    typer.echo("")
