"""How a kernel is spelt for one compiler: single roundings, registers, and what runs its tasks.

A kernel family states its loops once. On processors a *task* is an iteration of a parallel loop; on a GPU it is a thread,
nothing stands outside the tasks, and what LLVM calls an intrinsic has another name. The dialect in force while a kernel
is emitted says which; a target supplies it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.claims import claimed
from planish.codegen.simt.block import Block, Box
from planish.codegen.tiles.float import Expr


class Dialect(ABC):
    """One way to spell kernels."""

    name: str

    @abstractmethod
    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """``a * b + c``, rounded once."""

    @abstractmethod
    def sqrt(self, x: Expr) -> Expr:
        """The square root, correctly rounded."""

    @abstractmethod
    def absolute(self, x: Expr) -> Expr:
        """|x|."""

    @abstractmethod
    def copysign(self, magnitude: Expr, sign: Expr) -> Expr:
        """``magnitude`` with the sign of ``sign``."""

    @abstractmethod
    def round_even(self, x: Expr) -> Expr:
        """The nearest integer, ties to even."""

    @abstractmethod
    def prefetch(self, address: Expr, once: bool) -> None:
        """Emit a request for a cache line ahead of its use, or nothing; `once` if it will not be used a second time."""

    @abstractmethod
    def buffer(self, size: Any, dtype: str) -> Expr:
        """A buffer of the task that is being emitted, or of the whole kernel outside of tasks."""

    @abstractmethod
    def parallel(self, extent: Expr) -> AbstractContextManager[Expr]:
        """The loop over tasks, which may run in any order."""

    @abstractmethod
    def check(self, extent: Expr, condition: Callable[[Expr], Expr], message: str) -> None:
        """Emit that ``condition(i)`` must hold for every i < extent before anything else of the kernel is run."""

    @property
    def fine_grained(self) -> bool:
        """Whether every piece of work should be a task, even where there are few, down to one element, neighbours being
        in neighbouring tasks."""
        return False

    def box(self, source: Any, lines: int) -> Box:
        """Emit outside of kernels, in front of one: what `Block.copy_box` copies.

        Raises:
            ValueError: where no engine copies boxes.
        """
        raise ValueError(f"the dialect {self.name} copies no boxes")

    def launch(
        self,
        blocks: tuple[Expr, ...],
        threads: int,
        body: Callable[[Block], None],
        shared_bytes: int = 0,
        early: bool = False,
    ) -> None:
        """Emit a kernel of thread blocks (see `codegen.simt`).

        Args:
            blocks: extents of the grid, at most three.
            threads: of each block.
            body: what a block does.
            shared_bytes: sum over its shared buffers of their bytes, each rounded up to 128.
            early: whether the body itself says from where on it reads what other kernels wrote (`Block.wait_for_inputs`).

        Raises:
            ValueError: where there are none.
        """
        raise ValueError(f"the dialect {self.name} has no thread blocks")


class LlvmDialect(Dialect):
    """What LLVM compiles for a processor."""

    name = "llvm"

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(a.ty.dtype, "llvm.fma", a, b, c)

    def sqrt(self, x: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(x.ty.dtype, "llvm.sqrt", x)

    def absolute(self, x: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(x.ty.dtype, "llvm.fabs", x)

    def copysign(self, magnitude: Expr, sign: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(sign.ty.dtype, "llvm.copysign", magnitude, sign)

    def round_even(self, x: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(x.ty.dtype, "llvm.roundeven", x)

    def prefetch(self, address: Expr, once: bool) -> None:
        # To be read (0), kept in no cache but the first (0) or in every one (3), as data (1).
        kept = T.int32(0 if once else 3)
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), kept, T.int32(1)))

    def buffer(self, size: Any, dtype: str) -> Expr:
        return T.alloc_buffer(size, dtype)

    def parallel(self, extent: Expr) -> AbstractContextManager[Expr]:
        return claimed(extent)

    def check(self, extent: Expr, condition: Callable[[Expr], Expr], message: str) -> None:
        # Inside the threads a failure could not be reported.
        with T.serial(extent) as i, T.Assert(condition(i), message):
            pass


_CURRENT: ContextVar[Dialect] = ContextVar("dialect", default=LlvmDialect())  # noqa: B039 - it has no state


def current() -> Dialect:
    """The dialect in which kernels are being emitted."""
    return _CURRENT.get()


@contextmanager
def speaking(dialect: Dialect) -> Iterator[None]:
    """Emit kernels in a dialect."""
    token = _CURRENT.set(dialect)
    try:
        yield
    finally:
        _CURRENT.reset(token)


P = ParamSpec("P")
R = TypeVar("R")


def emitted_once(make: Callable[P, R]) -> Callable[P, R]:
    """Keep what a maker of PrimFuncs has made, for each dialect and its arguments."""

    @lru_cache(maxsize=256)
    def known(dialect: str, *args: P.args, **kwargs: P.kwargs) -> R:
        return make(*args, **kwargs)

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        # The cache's type asks for hashable arguments, which a ParamSpec cannot promise.
        keywords: dict[str, Any] = kwargs
        return known(current().name, *args, **keywords)

    return made
