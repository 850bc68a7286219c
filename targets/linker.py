"""Linking compiled objects into a shared library with the first of several linkers that does it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from planish.ir import InputError


def link_with(commands: Iterable[list[str]], objects: Sequence[Path], library: Path, advice: str) -> None:
    """Link with the first command that succeeds; each takes `-o LIBRARY OBJECTS...`.

    Raises:
        InputError: when there is no command, or with the last one's complaint; `advice` says what to do.
    """
    complaint = "no linker was found"
    for command in commands:
        done = subprocess.run(
            [*command, "-o", str(library), *map(str, objects)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        lines = done.stderr.strip().splitlines()
        complaint = f"{command[0]} says: {lines[-1] if lines else done.returncode}"
    raise InputError(f"{library.name} cannot be linked: {complaint}; {advice}")
