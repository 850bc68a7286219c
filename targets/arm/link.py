"""Linking for 64-bit Arm Linux from any machine: a cross compiler, clang with lld, or ziglang, which needs neither."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from planish.targets.linker import link_with

TRIPLE = "aarch64-linux-gnu"


def linkers() -> Iterator[list[str]]:
    """Commands that link a shared library for 64-bit Arm Linux."""
    names = [f"{TRIPLE}-gcc", f"{TRIPLE}-g++"]
    if platform.machine() == "aarch64" and platform.system() == "Linux":
        names += ["cc", "gcc"]
    for name in names:
        if found := shutil.which(name):
            yield [found, "-shared", "-fPIC"]
    if (clang := shutil.which("clang")) and shutil.which("ld.lld"):
        yield [clang, f"--target={TRIPLE}", "-fuse-ld=lld", "-nostdlib", "-shared"]
    if importlib.util.find_spec("ziglang") is not None:
        # The oldest C library whose phones and servers are still in use.
        yield [sys.executable, "-m", "ziglang", "cc", "-target", f"{TRIPLE}.2.28", "-shared", "-fPIC"]


def link(objects: Sequence[Path], library: Path) -> None:
    """Link objects into a shared library for 64-bit Arm Linux.

    Raises:
        InputError: when there is no linker for it, or with the last one's complaint.
    """
    link_with(linkers(), objects, library, f"`pip install ziglang`, or install gcc-{TRIPLE}")
