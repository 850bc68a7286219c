"""What this machine is: its processor's features, the compilation target that uses them, and the tiles that fit.

LLVM names a processor by family, but a hypervisor may hide features of that family, and LLVM may not know the family.
So the flags the operating system reports decide, and they are spelled out to LLVM where its idea of the name differs.
Feature names are LLVM's everywhere. An x86-64 processor has the tiles of this folder, 64-bit Arm those of `targets/arm`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tvm
from tvm.target import codegen as llvm

from planish.codegen.runtime.machine import llvm_feature
from planish.codegen.tiles.float import FloatTile
from planish.codegen.tiles.int8 import Int8Tile
from planish.targets.arm.float_tiles import NEON
from planish.targets.arm.int8_tiles import INT8_TILES as ARM_INT8_TILES
from planish.targets.arm.link import SYSTEMS
from planish.targets.arm.processors import BASELINE, SWITCHES
from planish.targets.host.float_tiles import FLOAT_TILES
from planish.targets.host.int8_tiles import INT8_TILES

CPUINFO = Path("/proc/cpuinfo")
_ARM = ("aarch64", "arm64")
_ARM_VECTORS = BASELINE | {*SWITCHES, "sve"}
"""Features of 64-bit Arm that compiled code makes use of."""


class _NeedsFeatures(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def features(self) -> frozenset[str]: ...


Tile = TypeVar("Tile", bound=_NeedsFeatures)


@dataclass(frozen=True)
class HostCpu:
    """One processor as a target.

    Attributes:
        model: the vendor's name, for reports.
        llvm_name: LLVM's name of the family.
        features: vector features it has, in LLVM's spelling.
        cores: physical cores this process may use.
        machine: the architecture, as the operating system names it.
    """

    model: str
    llvm_name: str
    features: frozenset[str]
    cores: int
    machine: str = "x86_64"

    @property
    def _is_arm(self) -> bool:
        return self.machine in _ARM

    @property
    def float_tiles(self) -> Sequence[FloatTile]:
        """The float tiles of its architecture, best first."""
        return (NEON,) if self._is_arm else FLOAT_TILES

    @property
    def int8_tiles(self) -> Sequence[Int8Tile]:
        """The 8-bit tiles of its architecture, best first."""
        return ARM_INT8_TILES if self._is_arm else INT8_TILES

    def tvm_target(self) -> Any:
        """The TVM target that compiles for exactly these features."""
        implied = self._llvm_features([])
        tiles: tuple[_NeedsFeatures, ...] = (*self.float_tiles, *self.int8_tiles)
        needed = frozenset[str]().union(*(tile.features for tile in tiles))
        added = sorted(f"+{feature}" for feature in (self.features & needed) - implied)
        # Taking a feature away takes those that stand on it (AVX-512 on AVX2): it stays where one of them is wanted.
        excess = [f for f in sorted(implied - self.features) if f.startswith("avx") or f in _ARM_VECTORS]
        kept = self.features & implied
        hidden = [f"-{feature}" for feature in excess if kept <= self._llvm_features([f"-{feature}"])]
        return self._llvm_target([*hidden, *added])

    def _llvm_target(self, attributes: list[str]) -> Any:
        base = {"kind": "llvm", "mcpu": self.llvm_name, "num-cores": self.cores}
        if self.machine == "aarch64":
            base["mtriple"] = SYSTEMS["linux"].triple
        return tvm.target.Target({**base, "mattr": attributes})

    def _llvm_features(self, attributes: list[str]) -> set[str]:
        """What LLVM takes its processor to have."""
        return set(llvm.llvm_get_cpu_features(self._llvm_target(attributes)))

    def restricted_to(self, features: Iterable[str]) -> HostCpu:
        """This processor as if it had no vector features but ``features``: to build for a lesser one of its kind."""
        return replace(self, features=self.features & frozenset(features))

    def tiles(self, tiles: Sequence[Tile]) -> list[Tile]:
        """Those of ``tiles`` whose instructions this processor has, in the same order."""
        return [tile for tile in tiles if tile.features <= self.features]

    @property
    def float_tile(self) -> FloatTile:
        """The fastest float tile. Raises RuntimeError when no tile fits."""
        return self._best(self.float_tiles)

    @property
    def int8_tile(self) -> Int8Tile:
        """The fastest 8-bit tile. Raises RuntimeError when no tile fits."""
        return self._best(self.int8_tiles)

    def _best(self, tiles: Sequence[Tile]) -> Tile:
        fitting = self.tiles(tiles)
        if not fitting:
            lacking = sorted(tiles[-1].features - self.features)
            least = (
                "a 64-bit Arm processor with dot products"
                if self._is_arm
                else "an x86-64 processor with AVX2, FMA and F16C"
            )
            raise RuntimeError(
                f"the host target cannot run on {self.model}: it lacks {', '.join(lacking)}; "
                f"use {least}, or build for another target"
            )
        return fitting[0]


def detect_host() -> HostCpu:
    """The processor this process runs on."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    name, machine = str(llvm.llvm_get_system_cpu()), platform.machine()
    if CPUINFO.is_file():
        return read_cpuinfo(CPUINFO.read_text(), name, allowed, machine)
    features = llvm.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": name}))
    return HostCpu(name, name, frozenset(map(str, features)), len(allowed), machine)


def read_cpuinfo(text: str, llvm_name: str, allowed: set[int], machine: str = "x86_64") -> HostCpu:
    """The processor described by the text of Linux's ``/proc/cpuinfo``, of which the logical CPUs ``allowed`` are ours."""
    model, features, cores = llvm_name, frozenset[str](), set[tuple[str, str]]()
    for number, block in enumerate(text.strip().split("\n\n")):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        processor = fields.get("processor", str(number))
        if processor not in map(str, allowed):
            continue
        model = fields.get("model name", model)
        features = frozenset(map(llvm_feature, fields.get("flags", fields.get("Features", "")).split()))
        # Two logical CPUs with one core id share its vector units; without ids each counts as a core.
        cores.add((fields.get("physical id", ""), fields.get("core id", f"processor {processor}")))
    return HostCpu(model, llvm_name, features, max(1, len(cores)), machine)
