"""From a compressed model to the file formats of other runtimes: one file a format.

A format that has no way to say what a model holds refuses it; nothing is rounded again and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from planish.ir import InputError

if TYPE_CHECKING:
    from planish.model import Model


def _compressed_tensors(model: Model, target: Path) -> None:
    from planish.exporting.compressed_tensors import write

    write(model, target)


def _gguf(model: Model, target: Path) -> None:
    from planish.exporting.gguf_file import write

    write(model, target)


FORMATS: dict[str, Callable[[Model, Path], None]] = {"compressed-tensors": _compressed_tensors, "gguf": _gguf}


def check_format(format: str) -> None:
    """Raise InputError, naming those there are, for a format that nothing writes."""
    if format not in FORMATS:
        raise InputError(f"no format is called {format!r}; choose one of {', '.join(FORMATS)}")


def export(model: Model, target: str | Path, format: str = "compressed-tensors") -> Path:
    """Write a model traced from a checkpoint folder for another runtime; returns where it was written.

    Args:
        model: what `trace` or `compress` returned. Its weights may have other encodings than the checkpoint's; its program
            must still be what the checkpoint's architecture computes, but for activations quantised at run time, which is a
            runtime's own choice and is not written.
        target: a folder for "compressed-tensors", a file for "gguf"; it must not exist yet, an empty folder may.
        format: "compressed-tensors", a transformers checkpoint folder, or "gguf", a file of llama.cpp.

    Raises:
        InputError: for what the format cannot hold, naming it, for a target that cannot be written, and for a package that is
            not installed. Nothing is left half-written.
    """
    check_format(format)
    path = Path(target)
    FORMATS[format](model, path)
    return path


__all__ = ["FORMATS", "export"]
