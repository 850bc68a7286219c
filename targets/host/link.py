"""Linking compiled objects into a shared library with whatever linker this machine has."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from planish.targets.linker import link_with

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
    link_with(linkers(), objects, library, "install a C compiler, or `pip install ziglang`")
