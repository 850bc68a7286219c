"""The machine that planish itself runs on, as a target."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tvm.target import codegen as llvm

from planish.codegen.registry import served_encodings
from planish.codegen.target import Target
from planish.codegen.tiles.float import FloatTile
from planish.codegen.tiles.int8 import Int8Tile
from planish.ir import Capabilities, UnsupportedError
from planish.targets.host.detect import HostCpu, detect_host
from planish.targets.host.link import link
from planish.targets.host.measured import Speeds, speeds


class HostTarget(Target):
    """This machine's processor, or a lesser one of its kind when `cpu` says so."""

    name = "host"

    def __init__(self, cpu: HostCpu | None = None) -> None:
        self.cpu = detect_host() if cpu is None else cpu
        try:
            self._float_tile, self._int8_tile = self.cpu.float_tile, self.cpu.int8_tile
        except RuntimeError as error:
            raise UnsupportedError(str(error)) from error

    def tvm_target(self) -> Any:
        return self.cpu.tvm_target()

    def features(self) -> frozenset[str]:
        """Every feature of this processor that LLVM makes use of, by the names that the operating system lists."""
        return self.cpu.features & frozenset(map(str, llvm.llvm_get_cpu_features(self.tvm_target())))

    @property
    def float_tile(self) -> FloatTile:
        return self._float_tile

    @property
    def int8_tile(self) -> Int8Tile:
        return self._int8_tile

    @cached_property
    def _speeds(self) -> Speeds:
        return speeds(self.cpu)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            name=self.name,
            cores=self.cpu.cores,
            vector_bits=32 * self._float_tile.lanes,
            features=self.cpu.features,
            kernels=served_encodings(self),
            bytes_per_second=self._speeds.bytes_per_second,
        )

    def operations_per_second(self) -> dict[str, float]:
        return {"float32": self._speeds.float32, "int8": self._speeds.int8}

    def link(self, objects: Sequence[Path], library: Path) -> None:
        link(objects, library)
