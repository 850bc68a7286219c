"""The machine that planish itself runs on, as a target."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tvm.target import codegen as llvm

from planish.codegen.registry import served_encodings
from planish.codegen.target import Target
from planish.codegen.tiles.float import FloatTile
from planish.codegen.tiles.int8 import Int8Tile
from planish.ir import Capabilities, UnsupportedError
from planish.targets.host.detect import HostCpu, detect_host
from planish.targets.host.link import link


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
    def _speeds(self) -> tuple[float, dict[str, float]]:
        return _measure_bandwidth(), _measure_arithmetic(self._int8_tile)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            name=self.name,
            cores=self.cpu.cores,
            vector_bits=32 * self._float_tile.lanes,
            features=self.cpu.features,
            kernels=served_encodings(self),
            bytes_per_second=self._speeds[0],
        )

    def operations_per_second(self) -> dict[str, float]:
        return self._speeds[1]

    def link(self, objects: Sequence[Path], library: Path) -> None:
        link(objects, library)


def _best_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _measure_bandwidth() -> float:
    """Bytes read per second while 64 MB are summed by one thread: a lower bound of what the machine can do."""
    data = np.ones(1 << 23, np.float64)
    return data.nbytes / _best_seconds(data.sum)


def _measure_arithmetic(tile: Int8Tile) -> dict[str, float]:
    """Float operations per second of a matrix product of the numerical library; integers by the width of their dots."""
    a = np.ones((512, 512), np.float32)
    speed = 2 * 512**3 / _best_seconds(lambda: a @ a)
    return {"float32": speed, "int8": speed * tile.depth / 2}
