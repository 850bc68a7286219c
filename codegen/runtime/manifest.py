"""Reading an artifact's manifest, and refusing what is not the artifact that was written."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from planish.codegen.runtime.errors import input_error

FORMAT = 1
MANIFEST, KERNELS, WEIGHTS, MODULE = "manifest.json", "kernels.so", "weights.safetensors", "module.ir"


def identity() -> dict[str, Any]:
    """The versions that an artifact written now carries."""
    return {"format": FORMAT, "planish": version("planish"), "tvm": version("apache-tvm")}


def read_manifest(folder: str | Path, *, check: bool = True) -> dict[str, Any]:
    """The manifest of an artifact whose versions and, with `check`, files are what they should be.

    Raises:
        InputError: with one sentence: no artifact, another version, a missing or a changed file.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise input_error(f"{folder} is no artifact: {MANIFEST} cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise input_error(f"{folder / MANIFEST} is damaged: {error}; compile the model again") from error
    if not isinstance(manifest, dict) or "files" not in manifest:
        raise input_error(f"{folder / MANIFEST} is no manifest of an artifact; compile the model again")
    mine = identity()
    for part, what in (("format", "artifact format"), ("planish", "planish"), ("tvm", "TVM")):
        if manifest.get(part) != mine[part]:
            raise input_error(
                f"the artifact {folder} was written by {what} {manifest.get(part)}, but this is {what} {mine[part]}: "
                f"compile the model again with this version, or load it with that one"
            )
    for name, stated in manifest["files"].items():
        _check_file(folder / name, stated, check)
    return manifest


def _check_file(path: Path, stated: Mapping[str, Any], check: bool) -> None:
    if not path.is_file():
        raise input_error(f"the artifact {path.parent} lacks its file {path.name}; compile the model again")
    if path.stat().st_size != stated["bytes"]:
        raise input_error(
            f"{path} has {path.stat().st_size} bytes, but {stated['bytes']} were written: the file is damaged; "
            f"compile the model again"
        )
    if check and sha256(path) != stated["sha256"]:
        raise input_error(f"{path} is not the file that was written (its SHA-256 differs); compile the model again")


def sha256(path: Path) -> str:
    """The digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: OSError) -> str:
    """What went wrong, in words for a sentence."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return error.strerror or str(error)
