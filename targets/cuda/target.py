"""CUDA GPUs as a target, and their kernels on this machine's processor for checking."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Self

import tvm

from planish.codegen.dialect import Dialect
from planish.codegen.registry import served_encodings
from planish.codegen.simt.serial import SerialDialect
from planish.codegen.target import BlockLimits, Target
from planish.codegen.tiles.float import FloatTile
from planish.codegen.tiles.scalar import ScalarTile
from planish.ir import Capabilities
from planish.targets.cuda.compiler import Compiling
from planish.targets.cuda.dialect import CudaDialect
from planish.targets.cuda.passes import PIPELINE
from planish.targets.cuda.processors import Processor, find_processor
from planish.targets.host.link import link

# A quarter of a thread's registers for accumulators leaves enough for the rest.
_TILE = ScalarTile("cuda", 1, 64, frozenset())


class CudaTarget(Target):
    """An NVIDIA GPU: `cuda`, `cuda:sm_80`. The code around the kernels is for this machine's processor."""

    name = "cuda"
    device: ClassVar[str] = "cuda"

    def __init__(self, processor: Processor | None = None) -> None:
        self.processor = find_processor("") if processor is None else processor
        self.name = f"cuda:{self.processor.name}"
        self._compiling = Compiling(self.processor.code)

    @classmethod
    def named(cls, detail: str) -> Self:
        return cls(find_processor(detail))

    def tvm_target(self) -> Any:
        kind = {
            "kind": "cuda", "arch": self.processor.code, "max_threads_per_block": 1024, "thread_warp_size": 32,
            "max_shared_memory_per_block": self.processor.shared_bytes,
        }  # fmt: skip
        return tvm.target.Target(kind, host=tvm.target.Target({"kind": "llvm"}))

    def features(self) -> frozenset[str]:
        """The architecture: machine code of one runs on no other."""
        return frozenset({self.processor.name})

    def capabilities(self) -> Capabilities:
        return Capabilities(
            name=self.name,
            cores=self.processor.multiprocessors,
            vector_bits=32,
            features=self.features(),
            kernels=served_encodings(self),
            bytes_per_second=self.processor.bytes_per_second,
        )

    @property
    def float_tile(self) -> FloatTile:
        return _TILE

    @property
    def dialect(self) -> Dialect:
        return CudaDialect(self.processor.overlaps)

    @property
    def blocks(self) -> BlockLimits:
        return BlockLimits(self.processor.shared_bytes, self.processor.multiprocessors, self.processor.group_products)

    @property
    def kernel_passes(self) -> str:
        return PIPELINE

    def compiling(self) -> AbstractContextManager[Any]:
        return self._compiling

    @property
    def resources(self) -> list[Any]:
        """What ptxas said of every kernel compiled with this target so far."""
        return self._compiling.resources

    def operations_per_second(self) -> dict[str, float]:
        return {"float32": self.processor.float32, "bfloat16": self.processor.bf16, "int8": self.processor.int8}

    def link(self, objects: Sequence[Path], library: Path) -> None:
        link(objects, library)


class CudaOnHost(CudaTarget):
    """The same kernels, cut for the same GPU, run thread after thread by this machine's processor: to check their meaning.

    `backwards` runs the threads of every block in the other order.
    """

    device: ClassVar[str] = "cpu"

    def __init__(self, processor: Processor | None = None, backwards: bool = False) -> None:
        super().__init__(processor)
        self.backwards = backwards

    def tvm_target(self) -> Any:
        # Kernels written out for a GPU's registers would keep LLVM's optimiser busy for minutes.
        return tvm.target.Target({"kind": "llvm", "opt-level": 0})

    def features(self) -> frozenset[str]:
        return frozenset()

    @property
    def dialect(self) -> Dialect:
        return SerialDialect(self.backwards)

    def compiling(self) -> AbstractContextManager[Any]:
        return Target.compiling(self)
