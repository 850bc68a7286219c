"""Cycles of a loop of Arm instructions by llvm-mca."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

PASSES = 200


def cycles(body: Sequence[str], model: str) -> float:
    """Cycles of one pass over ``body`` by llvm-mca, many passes one after the other."""
    command = [
        _llvm_mca(),
        "-mtriple=aarch64",
        f"-mcpu={model}",
        "-json",
        f"-iterations={PASSES}",
        "-instruction-info=0",
    ]
    done = subprocess.run(command, input="\n".join(body), capture_output=True, text=True, check=True)
    total: int = json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]["TotalCycles"]
    return total / PASSES


@cache
def _llvm_mca() -> str:
    """An llvm-mca whose models are those of 17 or later: before, they have other pipes."""
    for suffix in ("-19", "-22", "-18", "-17", ""):
        found = shutil.which(f"llvm-mca{suffix}")
        if found is None:
            continue
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"version (\d+)", said)
        if version is not None and int(version[1]) >= 17:
            return found
    sys.exit("llvm-mca 17 or later is not installed (on Debian: apt-get install llvm-19)")
