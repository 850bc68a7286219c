"""Kernels as CUDA C++: a task is a thread, and nothing stands outside the threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dialect import Dialect
from planish.codegen.simt.block import LINE, Block, Box
from planish.codegen.tiles.float import Expr
from planish.targets.cuda.block import CudaBlock, device_call, plain, wait_for_previous

_EXCHANGED = 3
"""CU_TENSOR_MAP_SWIZZLE_128B."""
_WHOLE_LINES = 2
"""CU_TENSOR_MAP_L2_PROMOTION_L2_128B."""
TASK_THREADS = 128
"""Tasks in one block of threads."""


def _call(name: str, *arguments: Expr) -> Expr:
    return T.call_pure_extern("float32", name, *arguments)


class CudaDialect(Dialect):
    """What nvcc compiles. Its intrinsics round as IEEE 754 says, whatever nvcc is told about speed.

    With `overlaps`, blocks of a kernel may start while the kernel before it ends, and wait for what it has written.
    """

    def __init__(self, overlaps: bool) -> None:
        self.name = "cuda, kernels overlapping" if overlaps else "cuda"
        self._overlaps, self._inside = overlaps, False

    @property
    def fine_grained(self) -> bool:
        return True

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        if str(a.ty.dtype) == "float64":
            return T.call_pure_extern("float64", "__fma_rn", a, b, c)
        return _call("__fmaf_rn", a, b, c)

    def sqrt(self, x: Expr) -> Expr:
        return _call("__fsqrt_rn", x)

    def absolute(self, x: Expr) -> Expr:
        return _call("fabsf", x)

    def copysign(self, magnitude: Expr, sign: Expr) -> Expr:
        return _call("copysignf", magnitude, sign)

    def round_even(self, x: Expr) -> Expr:
        if str(x.ty.dtype) == "float64":
            return T.call_pure_extern("float64", "rint", x)
        return _call("rintf", x)

    def prefetch(self, address: Expr, once: bool) -> None:
        pass

    def buffer(self, size: Any, dtype: str) -> Expr:
        return T.alloc_buffer(size, dtype, scope="local" if self._inside else "global")

    @contextmanager
    def _threads(
        self, blocks: tuple[Expr, ...], threads: int, early: bool = False
    ) -> Iterator[tuple[tuple[Expr, ...], Expr]]:
        assert not self._inside, "a kernel cannot launch another one"
        with ExitStack() as stack:
            # A grid without blocks cannot be launched; its first block then finds nothing to do.
            index = tuple(
                stack.enter_context(T.launch_thread(f"blockIdx.{axis}", T.max(extent, T.int64(1))))
                for axis, extent in zip("xyz", blocks)
            )
            thread = stack.enter_context(T.launch_thread("threadIdx.x", T.int64(threads)))
            if self._overlaps:
                stack.enter_context(T.attr(_NOTHING, "tirx.use_programtic_dependent_launch", T.int32(1)))
                T.evaluate(device_call("let_next_start", plain("griddepcontrol.launch_dependents;")))
                if not early:
                    T.evaluate(wait_for_previous())
            self._inside = True
            try:
                yield index, thread
            finally:
                self._inside = False

    @contextmanager
    def _parallel(self, extent: Expr) -> Iterator[Expr]:
        blocks = tirx.floordiv(extent + (TASK_THREADS - 1), TASK_THREADS)
        with self._threads((blocks,), TASK_THREADS) as ((block,), thread):
            task = block * TASK_THREADS + thread
            with T.If(task < extent), T.Then():
                yield task

    def parallel(self, extent: Expr) -> AbstractContextManager[Expr]:
        return self._parallel(extent)

    def check(self, extent: Expr, condition: Callable[[Expr], Expr], message: str) -> None:
        with self.parallel(extent) as i:
            T.evaluate(device_call("check", _CHECK, T.cast(condition(i), "bool")))

    def box(self, source: Any, lines: int) -> Box:
        assert not self._inside, "the host describes a box"
        rows, columns = source.shape
        described = T.Var(f"{source.name}_box", T.handle("tensormap").ty)
        T.Bind(T.tvm_stack_alloca("tensormap", 1), var=described)
        sizes = (columns, rows, columns, T.int64(LINE), T.int64(lines), T.int64(1), T.int64(1))
        T.evaluate(
            T.tensormap_encode_tiled(
                described, source.data, *sizes,
                descriptor_dtype="uint8", rank=2, swizzle=_EXCHANGED, l2_promotion=_WHOLE_LINES,
            )
        )  # fmt: skip
        return Box(source, lines, described)

    def launch(
        self,
        blocks: tuple[Expr, ...],
        threads: int,
        body: Callable[[Block], None],
        shared_bytes: int = 0,
        early: bool = False,
    ) -> None:
        with self._threads(blocks, threads, early) as (index, thread):
            empty = [extent < 1 for extent in blocks if not isinstance(extent, tirx.IntImm)]
            block = CudaBlock(index, threads, thread, shared_bytes, self._overlaps)
            if not empty:
                body(block)
                return
            some = tirx.Not(empty[0]) if len(empty) == 1 else tirx.Not(tirx.any(*empty))
            with T.If(some), T.Then():
                body(block)


_NOTHING = tirx.IntImm("int32", 0)
# The driver reports a trap as an error of the whole context, as PyTorch's device-side assertions do.
_CHECK = "__device__ __forceinline__ void NAME(bool holds) { if (!holds) __trap(); }"
