"""Files of pictures: checked before the work, written whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from planish.ir import InputError

FORMATS = (".png", ".svg")


def check_picture(path: Path, what: str) -> None:
    """Raises InputError when no picture of something can be drawn into that file."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path} is no name of a picture: end it in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(f"{what} is drawn by matplotlib, which is not installed: pip install planish[plot]")


def write_picture(figure: Any, path: Path) -> None:
    """Draw a figure of matplotlib into a file; raises InputError when it cannot be written."""
    buffer = BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(buffer.getvalue())
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
