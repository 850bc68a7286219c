"""`planish inspect`: what a model or an artifact consists of."""

from __future__ import annotations

import json as json_module
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer

from planish.cli.output import JSON, megabytes, print_json, table
from planish.cli.source import is_artifact, open_model
from planish.ir import InputError, Module
from planish.ir.ops import Aten


def inspect_model(
    source: Path = typer.Argument(..., help="A checkpoint folder, a .pt2 file, or an artifact's folder."),
    text: bool = typer.Option(False, "--text", help="Print the module's text form on standard output."),
    spaces: bool = typer.Option(False, "--spaces", help="Show which axes are one, and what may be done to them."),
    draw: Path | None = typer.Option(None, "--draw", help="With --spaces: draw them into a .png or .svg file."),
    json: bool = JSON,
) -> None:
    """Show functions, operations, parameters and, of an artifact, the build report."""
    if draw is not None and not spaces:
        raise InputError("--draw draws spaces: give --spaces too")
    if is_artifact(source):
        _artifact(source, text, json)
        return
    module = open_model(source).module
    if spaces:
        from planish.cli.spaces import show_spaces

        show_spaces(module, json, draw)
    elif text:
        from planish.ir.text import print_module

        typer.echo(print_module(module))
    elif json:
        print_json(_summary(module))
    else:
        _tables(module)


def operation_counts(module: Module, function: str) -> Counter[str]:
    """How often each operation occurs in a function."""
    nodes = module.functions[function].nodes
    return Counter(f"aten.{n.op.overload}" if isinstance(n.op, Aten) else n.op.name for n in nodes)


def _summary(module: Module) -> dict[str, Any]:
    encodings: Counter[str] = Counter()
    for param in module.params.values():
        encodings[str(param.encoding)] += param.nbytes
    return {
        "functions": {name: dict(operation_counts(module, name).most_common()) for name in module.functions},
        "bytes": dict(encodings),
        "parameters": len(module.params),
        "metadata": dict(module.metadata),
    }


def _tables(module: Module) -> None:
    for name in module.functions:
        table(f"Operations of {name}", ("operation", "count"), operation_counts(module, name).most_common())
    summary = _summary(module)
    table("Parameters", ("encoding", "bytes"), [(k, megabytes(v)) for k, v in summary["bytes"].items()])
    table("Metadata", ("", ""), list(summary["metadata"].items()))


def _artifact(folder: Path, text: bool, json: bool) -> None:
    from planish.codegen.runtime.manifest import MODULE, read_manifest

    manifest = read_manifest(folder)
    if text:
        typer.echo((folder / MODULE).read_text(encoding="utf-8"))
        return
    if json:
        typer.echo(json_module.dumps(manifest, indent=2, ensure_ascii=False))
        return
    sizes = [(name, megabytes(facts["bytes"])) for name, facts in manifest["files"].items()]
    table("Files", ("file", "size"), sizes)
    table("Built for", ("", ""), [("target", manifest["target"]["name"]), ("planish", manifest["planish"])])
    _states(manifest)
    for function, report in manifest["report"]["functions"].items():
        sizes_here = ", ".join(f"{symbol}={size}" for symbol, size in report["sizes"].items())
        table(
            f"Build report of {function} ({sizes_here}; no faster than {report['floor_seconds'] * 1e3:.3g} ms)",
            ("operations", "kernel", "bytes", "work", "share of the floor"),
            [
                (", ".join(s["operations"]), s["kernel"], s["bytes_here"], s["work_here"], f"{s['share']:.1%}")
                for s in report["steps"]
            ],
        )


def _states(manifest: Mapping[str, Any]) -> None:
    """What a session remembers, and what that takes for the sizes of the reports."""
    from planish.codegen.runtime.sizes import parse_type

    sizes: dict[str, int] = {}
    for report in manifest["report"]["functions"].values():
        sizes.update(report["sizes"])
    rows = []
    for name, state in manifest["states"].items():
        memory = parse_type(state["memory"])
        nbytes = math.prod(memory.shape(sizes)) * np.dtype(memory.stored).itemsize
        rows.append((name, state["type"], state["encoding"], nbytes))
    if rows:
        held = ", ".join(f"{symbol}={sizes[symbol]}" for symbol in ("B", "C") if symbol in sizes)
        rows.append(("all", "", "", sum(row[-1] for row in rows)))
        table(f"States ({held})", ("state", "tensor", "held as", "bytes"), rows)
