"""x86-64 with AVX2 and nothing newer, whatever more this machine has: for artifacts that run on most of them."""

from __future__ import annotations

from dataclasses import replace

from planish.targets.host.detect import detect_host
from planish.targets.host.float_tiles import AVX2
from planish.targets.host.target import HostTarget


class Avx2Target(HostTarget):
    """The host's kernels and linker, with the features of AVX2 only."""

    name = "avx2"

    def __init__(self) -> None:
        # LLVM's name for the processors that have AVX2 and what came with it.
        super().__init__(replace(detect_host().restricted_to(AVX2.features), llvm_name="x86-64-v3"))
