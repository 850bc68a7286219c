"""Linking compiled objects into a shared library with whatever linker this machine has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from planish.ir import InputError

_DRIVERS = ("cc", "gcc", "clang", "c++", "g++", "clang++")
_LINKERS = ("ld", "ld.lld", "lld")


def linkers() -> Iterator[list[str]]:
    """Commands that link a shared library, the usual ones first; each takes `-o LIBRARY OBJECTS...`."""
    for name in _DRIVERS:
        if found := shutil.which(name):
            yield [found, "-shared", "-fPIC"]
    for name in _LINKERS:
        if found := shutil.which(name):
            yield [found, "-shared"]
    if importlib.util.find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC"]


def link(objects: Sequence[Path], library: Path) -> None:
    """Link objects into a shared library with the first linker that succeeds.

    Raises:
        InputError: when there is no linker, or with the last one's complaint.
    """
    complaint = "no linker was found"
    for command in linkers():
        done = subprocess.run(
            [*command, "-o", str(library), *map(str, objects)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        lines = done.stderr.strip().splitlines()
        complaint = f"{command[0]} says: {lines[-1] if lines else done.returncode}"
    raise InputError(f"{library.name} cannot be linked: {complaint}; install a C compiler, or `pip install ziglang`")
