"""What a path on the command line may be: a checkpoint to trace, or an artifact to load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planish.ir import InputError
from planish.model import Model

if TYPE_CHECKING:
    from planish.codegen.runtime.language_model import LanguageModel


def is_artifact(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def open_generator(folder: Path, threads: int | None, device: str | None) -> LanguageModel:
    """Load an artifact that generates; raises InputError for one that does not."""
    import planish
    from planish.codegen.runtime.language_model import LanguageModel

    program = planish.load(folder, threads=threads, device=device)
    if not isinstance(program, LanguageModel):
        raise InputError(f"{folder} does not generate text: it has no prefill, extend and decode; call it from Python")
    return program


def open_model(path: Path, *, check: bool = False) -> Model:
    """Trace a checkpoint folder or a `.pt2` file; raises InputError for anything else."""
    import planish
    from planish.cli.output import progress

    if is_artifact(path):
        raise InputError(f"{path} is an artifact, compiled already; name the checkpoint folder it was made from")
    if path.suffix != ".pt2" and not (path / "config.json").is_file():
        raise InputError(f"{path} is neither a checkpoint folder (no config.json), nor an artifact, nor a .pt2 file")
    with progress("tracing") as move:
        return planish.trace(path, check=check, progress=move)
