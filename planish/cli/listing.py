"""`planish passes` and `planish targets`: what there is to choose from."""

from __future__ import annotations

import inspect

import typer

from planish.cli.output import JSON, console, print_json, table
from planish.passes.registry import pass_class, pass_names


def list_passes(name: str = typer.Argument(None, help="Show this pass with its options."), json: bool = JSON) -> None:
    """List the passes a recipe may name, or show one with its options."""
    if name is not None:
        kind = pass_class(name)
        options = {key: {"default": f.get_default(), "type": str(f.annotation)} for key, f in kind.model_fields.items()}
        if json:
            print_json(
                {
                    "name": name,
                    "about": inspect.getdoc(kind),
                    "options": {k: str(v["default"]) for k, v in options.items()},
                }
            )
            return
        console().print(inspect.getdoc(kind) or "", markup=False)
        table("Options", ("option", "default", "type"), [(k, v["default"], v["type"]) for k, v in options.items()])
        return
    summaries = {known: (inspect.getdoc(pass_class(known)) or "").split("\n\n")[0] for known in pass_names()}
    if json:
        print_json(summaries)
        return
    table("Passes", ("pass", "what it does"), [(known, " ".join(text.split())) for known, text in summaries.items()])


def list_targets(json: bool = JSON) -> None:
    """List the targets that a model can be compiled for."""
    from planish.targets import target_class, target_names

    summaries = {known: (inspect.getdoc(target_class(known)) or "").split("\n\n")[0] for known in target_names()}
    if json:
        print_json(summaries)
        return
    table("Targets", ("target", "machine"), [(known, " ".join(text.split())) for known, text in summaries.items()])
