"""What a target states about a machine. Targets are written against this interface; codegen knows none by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from planish.codegen.dialect import Dialect, LlvmDialect
from planish.codegen.kernel_passes import PIPELINE
from planish.codegen.tiles.float import FloatTile
from planish.codegen.tiles.int8 import Int8Tile
from planish.ir import Capabilities, InputError, PlanishError


@dataclass(frozen=True)
class BlockLimits:
    """Facts of a machine that runs blocks of threads.

    Attributes:
        shared_bytes: shared memory of one block.
        multiprocessors: how many run blocks side by side.
        group_products: whether warps multiply in groups (`Block.group_products_s8`).
    """

    shared_bytes: int
    multiprocessors: int
    group_products: bool = False


class Target(ABC):
    """One machine to compile for.

    Attributes:
        name: as the user writes it.
        device: the kind of device kernels run on, in the runtime's words ("cpu", "cuda").
    """

    name: str
    device: ClassVar[str] = "cpu"

    @classmethod
    def named(cls, detail: str) -> Self:
        """The target for what a user wrote after its name and a colon ("cortex-a76" of "arm:cortex-a76"), or for "".

        Raises:
            InputError: for a detail that means nothing to this target.
        """
        if detail:
            raise InputError(f"the target {cls.name!r} takes no processor, but {detail!r} was given")
        return cls()

    @abstractmethod
    def tvm_target(self) -> Any:
        """The TVM target: processor, features, cores."""

    @abstractmethod
    def features(self) -> frozenset[str]:
        """The processor features that compiled code will use, in LLVM's spelling; a loader checks them."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Facts that passes may use."""

    @property
    @abstractmethod
    def float_tile(self) -> FloatTile:
        """The vectors of float32 kernels."""

    @property
    def int8_tile(self) -> Int8Tile:
        """The dot products of integer kernels; a target with `blocks` has none."""
        raise PlanishError(f"{self.name} has no vectors of bytes")

    @property
    def dialect(self) -> Dialect:
        """How kernels are spelt for its compiler."""
        return LlvmDialect()

    @property
    def blocks(self) -> BlockLimits | None:
        """What a block of threads may have; None where kernels are loops of a processor."""
        return None

    @property
    def kernel_passes(self) -> str:
        """The name of a list of TVM's passes for kernels, in its table of them."""
        return PIPELINE

    def compiling(self) -> AbstractContextManager[Any]:
        """What must be in place while TVM compiles for this target."""
        return nullcontext()

    @abstractmethod
    def operations_per_second(self) -> dict[str, float]:
        """Peak arithmetic of all cores by kind ("float32", "int8"), for the report's roofline."""

    @abstractmethod
    def link(self, objects: Sequence[Path], library: Path) -> None:
        """Link object files into a shared library for this machine; raises PlanishError when no linker is found."""

    def linker(self) -> Callable[..., None]:
        """`link` in the form TVM's export wants."""

        def call(output: str, objects: Any, **options: Any) -> None:
            files = [objects] if isinstance(objects, str) else list(objects)
            self.link([Path(f) for f in files], Path(output))

        call.object_format = "o"  # type: ignore[attr-defined]
        return call
