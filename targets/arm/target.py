"""64-bit Arm processors with dot products, as a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import tvm
from tvm.target import codegen as llvm

from planish.codegen.registry import served_encodings
from planish.codegen.target import Target
from planish.codegen.tiles.float import FloatTile
from planish.codegen.tiles.int8 import Int8Tile, products
from planish.ir import Capabilities, UnsupportedError
from planish.targets.arm.float_tiles import NEON
from planish.targets.arm.int8_tiles import INT8_TILES
from planish.targets.arm.link import SYSTEMS, System, find_system
from planish.targets.arm.processors import BASELINE, SWITCHES, Processor, find_processor


class ArmTarget(Target):
    """A phone's or a server's 64-bit Arm processor: `arm`, `arm:cortex-a76`, `arm:generic+i8mm`, under Linux unless a system
    comes first: `arm:android`, `arm:ios/apple-m1`."""

    name = "arm"

    def __init__(self, processor: Processor | None = None, system: System = SYSTEMS["linux"]) -> None:
        self.processor = find_processor("") if processor is None else processor
        self.system = system
        self.name = (
            f"arm:{self.processor.name}" if system.name == "linux" else f"arm:{system.name}/{self.processor.name}"
        )
        fitting = [tile for tile in INT8_TILES if tile.features <= self.processor.features]
        if not fitting:
            raise UnsupportedError(
                f"{self.name} has no dot product of bytes, which every kernel on quantised weights uses; "
                f"leave out +nodotprod, or name a processor that has i8mm"
            )
        self._int8_tile = fitting[0]

    @classmethod
    def named(cls, detail: str) -> Self:
        system, slash, processor = detail.partition("/")
        if slash or system in SYSTEMS:
            return cls(find_processor(processor), find_system(system))
        return cls(find_processor(detail, SYSTEMS))

    def tvm_target(self) -> Any:
        wanted = self.processor.features
        base = {
            "kind": "llvm", "mtriple": self.system.triple, "mcpu": self.processor.llvm_name,
            "num-cores": self.processor.cores,
        }  # fmt: skip
        implied = set(map(str, llvm.llvm_get_cpu_features(tvm.target.Target(base))))
        switched = [f"+{f}" for f in sorted(wanted - implied)]
        switched += [f"-{f}" for f in sorted((implied & (BASELINE | set(SWITCHES))) - wanted)]
        return tvm.target.Target({**base, "mattr": switched})

    def features(self) -> frozenset[str]:
        return self.processor.features

    def capabilities(self) -> Capabilities:
        return Capabilities(
            name=self.name,
            cores=self.processor.cores,
            vector_bits=32 * NEON.lanes,
            features=self.processor.features,
            kernels=served_encodings(self),
            bytes_per_second=self.processor.bytes_per_second,
        )

    @property
    def float_tile(self) -> FloatTile:
        return NEON

    @property
    def int8_tile(self) -> Int8Tile:
        return self._int8_tile

    def operations_per_second(self) -> dict[str, float]:
        """From clock and pipes, each of which starts a vector of four fused multiply-adds or the products of one tile."""
        started = self.processor.gigahertz * 1e9 * self.processor.pipes * self.processor.cores
        return {"float32": 8 * started, "int8": 2 * products(self.int8_tile) * started}

    def link(self, objects: Sequence[Path], library: Path) -> None:
        self.system.link(objects, library)
