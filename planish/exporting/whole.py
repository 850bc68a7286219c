"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from planish.codegen.runtime.manifest import reason
from planish.ir import InputError


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` make a folder or a file of the name it is given, and put it at `target`.

    Raises:
        InputError: when the target is there already (an empty folder may be) or cannot be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} exists; choose another name or remove it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot export to {target}: {reason(error)}") from error
    try:
        write(beside / target.name)
        if target.is_dir():
            target.rmdir()
        (beside / target.name).rename(target)
    except OSError as error:
        raise InputError(f"cannot export to {target}: {reason(error)}; nothing was written") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
