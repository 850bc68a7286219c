"""Reproducers: a folder with everything that makes a pass fail again.

    module.ir           the module before the pass, as text
    weights.safetensors parameters that were in memory or computed; those in files are referred to by path
    reproducer.json     the pipeline with its options, the seed, where each parameter lives, and the message

`rerun` runs it; from a shell, `python -m planish.passes.reproducer FOLDER`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from planish.ir.errors import InputError, PlanishError
from planish.ir.module import Module
from planish.ir.params import InFile, InMemory, Missing, Param
from planish.ir.text import parse_module, print_module
from planish.passes.pass_base import Pass
from planish.passes.recipe import Recipe, parse_recipe

FORMAT = 1
LARGEST = 2 << 30
"""Computed parameters beyond so many bytes together are not written out; the reproducer then refuses."""


def write_reproducer(folder: Path, module: Module, passes: Sequence[Pass], seed: int, message: str) -> Path:
    """Write a reproducer, whole or not at all; returns its folder, numbered if that name is taken.

    Raises OSError when it cannot be written, and InputError when the weights are too large to be copied.
    """
    tensors: dict[str, torch.Tensor] = {}
    places: dict[str, Any] = {}
    for name, param in module.params.items():
        places[name] = _place(param, tensors)
    document = {
        "format": FORMAT,
        "version": version("planish"),
        "recipe": Recipe(tuple(passes), seed).dump(),
        "message": message,
        "parameters": places,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=".reproducer-", dir=folder.parent))
    try:
        (written / "module.ir").write_text(print_module(module), encoding="utf-8")
        (written / "reproducer.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        save_file(tensors, written / "weights.safetensors")
        final, number = folder, 1
        while final.exists():
            final, number = folder.with_name(f"{folder.name}-{number}"), number + 1
        os.replace(written, final)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise
    return final


def _place(param: Param, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Where a parameter's storage is found again; storage without a file of its own is added to `tensors`."""
    source = param.source
    if isinstance(source, InFile):
        return {"file": str(Path(source.path).resolve()), "keys": dict(source.keys)}
    if isinstance(source, Missing):
        return {"missing": True}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if not isinstance(source, InMemory) and size + param.nbytes > LARGEST:
        raise InputError(f"the computed parameters of the module take more than {LARGEST} bytes")
    keys = {}
    for field, tensor in param.storage().items():
        keys[field] = f"{param.name}/{field}"
        # A copy, because a file of safetensors holds no two tensors that share memory.
        tensors[keys[field]] = tensor.detach().clone().contiguous()
    return {"file": "weights.safetensors", "keys": keys}


def read_reproducer(folder: Path | str) -> tuple[Module, dict[str, Any]]:
    """The module before the pass, and the document of a reproducer; raises InputError when it is none."""
    folder = Path(folder)
    try:
        document: dict[str, Any] = json.loads((folder / "reproducer.json").read_text(encoding="utf-8"))
        text = (folder / "module.ir").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no reproducer: {error}") from error
    if document.get("format") != FORMAT:
        raise InputError(f"{folder} is a reproducer of format {document.get('format')}; this planish reads {FORMAT}")
    places = document["parameters"]
    declared = parse_module(text)

    def weight(name: str) -> Param | None:
        place, param = places.get(name, {}), declared.params[name]
        if "file" not in place:
            return param
        path = Path(place["file"])
        path = path if path.is_absolute() else folder / path
        return Param(name, param.type, param.encoding, InFile(path, place["keys"]))

    return parse_module(text, weight), document


def rerun(folder: Path | str, passes: Sequence[Pass] | None = None) -> tuple[Module, Any]:
    """Run a reproducer's pipeline again; returns the module and the report when it does not fail this time.

    `passes` stands in for the stored pipeline, for passes that are not registered.

    Raises:
        PassError: when it fails, as it did.
        InputError: when the folder is no reproducer or names passes that are not registered.
    """
    from planish.passes.manager import PassManager
    from planish.passes.pass_base import Context

    module, document = read_reproducer(folder)
    recipe = parse_recipe(document["recipe"], str(folder)) if passes is None else Recipe(tuple(passes))
    return PassManager(recipe.passes, context=Context(seed=recipe.seed), reproduce=False).run(module)


def main(arguments: Sequence[str]) -> int:
    """`python -m planish.passes.reproducer FOLDER`: 0 when it passes, 1 when it fails, 2 when it is no reproducer."""
    if len(arguments) != 1:
        print("usage: python -m planish.passes.reproducer FOLDER", file=sys.stderr)
        return 2
    try:
        _, report = rerun(arguments[0])
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except PlanishError as error:
        print(error, file=sys.stderr)
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
