"""Thread blocks on a processor: one block after another, one thread after another.

A phase is a loop over the threads, and a collective does what its instruction is documented to do. The order of the threads
may be turned round: a kernel whose results then differ reads within a phase what another thread writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from planish.codegen.dialect import LlvmDialect
from planish.codegen.math import hold
from planish.codegen.simt.block import LINE, WARP, Block, Box, Registers, bytes_of, rounded_bytes
from planish.codegen.tiles.float import Expr


@contextmanager
def _each(count: int) -> Iterator[Expr]:
    """A loop over 0, 1, ..., count - 1, as int32.

    It counts in a cell: of a loop that TVM knows as one it proves things at every index below, which is nine tenths of the
    time that it takes to compile a kernel.
    """
    cell = T.alloc_buffer((1,), "int32")
    T.buffer_store(cell, T.int32(0), [0])
    with T.While(cell[0] < count):
        yield T.bind(cell[0])
        T.buffer_store(cell, cell[0] + 1, [0])


class _Registers:
    """An array over the threads; `thread` is set while a phase is emitted."""

    def __init__(self, block: SerialBlock, name: str, size: int, dtype: str) -> None:
        self.block, self.size, self.dtype = block, size, dtype
        self.buffer = IRBuilder.name(name, T.alloc_buffer((block.threads * size,), dtype))

    def of(self, thread: Expr, at: int) -> Expr:
        return self.buffer[thread * self.size + at]

    def put(self, thread: Expr, at: int, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [thread * self.size + at])

    def __getitem__(self, at: int) -> Expr:
        return self.of(self.block.thread, at)

    def __setitem__(self, at: int, value: Expr) -> None:
        self.put(self.block.thread, at, value)


class SerialBlock(Block):
    """A block whose threads take turns."""

    def __init__(self, index: tuple[Expr, ...], threads: int, backwards: bool) -> None:
        assert threads & (threads - 1) == 0, "a block has a power of two of threads"
        self.index, self.threads, self.backwards = index, threads, backwards
        self._thread: Expr | None = None
        self.shared_bytes = 0

    @property
    def thread(self) -> Expr:
        assert self._thread is not None, "registers belong into a phase"
        return self._thread

    def registers(self, name: str, size: int, dtype: str = "float32") -> Registers:
        return _Registers(self, name, size, dtype)

    def shared(self, name: str, size: int, dtype: str = "float32") -> Any:
        self.shared_bytes += rounded_bytes(size, dtype)
        return IRBuilder.name(name, T.alloc_buffer((size,), dtype))

    def shared_again(self, name: str, size: int, dtype: str = "float32") -> Any:
        assert rounded_bytes(size, dtype) <= self.shared_bytes
        return IRBuilder.name(name, T.alloc_buffer((size,), dtype))

    @contextmanager
    def phase(self) -> Iterator[Expr]:
        assert self._thread is None, "phases do not nest"
        with _each(self.threads) as turn:
            # Written as a difference, TVM would divide it wrongly.
            self._thread = T.bind(T.bitwise_xor(turn, T.int32(self.threads - 1))) if self.backwards else turn
            yield self._thread
        self._thread = None

    def barrier(self) -> None:
        pass

    def warp_barrier(self) -> None:
        pass

    def gates(self, count: int = 1, arrivals: int | None = None) -> Any:
        return self.shared("gates", count, "uint64")

    def arrive(self, gates: Any, number: Expr | int = 0) -> None:
        pass

    def expect(self, gates: Any, number: Expr | int, bytes: int) -> None:
        pass

    def pass_gate(self, gates: Any, turn: Expr, number: Expr | int = 0) -> None:
        pass

    def wait_for_inputs(self) -> None:
        pass

    def exchange(self, result: Registers, source: Registers, mask: int) -> None:
        assert isinstance(source, _Registers)
        with self.phase() as thread:
            result[0] = source.of(T.bitwise_xor(thread, T.int32(mask)), 0)

    def dot_s8(self, sums: Registers, at: int, a: Expr, b: Expr) -> None:
        a, b = hold(a), hold(b)
        with _each(4) as part:
            sums[at] = sums[at] + _byte(a, part) * _byte(b, part)

    def bytes_of_two(self, first: Expr, second: Expr, places: tuple[int, int, int, int]) -> Expr:
        words, word = (hold(first), hold(second)), T.uint32(0)
        for number, place in enumerate(places):
            byte = T.bitwise_and(T.shift_right(words[place // 4], T.uint32(place % 4 * 8)), T.uint32(255))
            word = T.bitwise_or(word, T.shift_left(byte, T.uint32(8 * number)))
        return word

    def fields_times(self, word: Expr, times: Expr, more: Expr) -> Expr:
        fields = T.bitwise_xor(T.bitwise_and(word, T.uint32(0x000F000F)), T.uint32(0x00080008))
        return fields * times + more

    def products_s8(
        self, sums: Registers, at: int, a: Registers, a_at: int, b: Registers, b_at: int, fresh: bool = False
    ) -> None:
        if fresh:
            with self.phase():
                for number in range(4):
                    sums[at + number] = T.int32(0)

        assert isinstance(sums, _Registers) and isinstance(a, _Registers) and isinstance(b, _Registers)
        total = sums.buffer
        # Loops: written out, the instructions of one kernel would keep LLVM busy for minutes.
        with self.phase() as thread, _each(4) as number:
            warp, lane = thread // WARP * WARP, thread % WARP
            # Lane 4 g + r holds row g or g + 8, column 2 r or 2 r + 1.
            row_lane, column_lane = warp + lane // 4 * 4, warp + (lane % 4 * 2 + number % 2) * 4
            place = thread * sums.size + at + number
            with _each(2) as half, _each(4) as quarter, _each(4) as part:
                word = a.buffer[(row_lane + quarter) * a.size + a_at + 2 * half + number // 2]
                other = b.buffer[(column_lane + quarter) * b.size + b_at + half]
                T.buffer_store(total, total[place] + _byte(word, part) * _byte(other, part), [place])

    def group_products_s8(
        self,
        sums: Registers,
        at: int,
        columns: int,
        a: Registers,
        a_at: int,
        shared: Any,
        place: Expr,
        beyond: int = 0,
        fresh: bool = False,
        positive: bool = False,
    ) -> None:
        assert isinstance(sums, _Registers) and isinstance(a, _Registers)
        left, total = a.buffer, sums.buffer
        with self.phase() as thread, _each(columns // 2) as number:
            lane = thread % WARP
            row_lane, column = thread - lane % 4, number // 4 * 8 + lane % 4 * 2 + number % 2
            of_thread = thread * sums.size + at + number
            if fresh:
                T.buffer_store(total, T.int32(0), [of_thread])
            with _each(2) as half, _each(4) as quarter, _each(4) as part:
                word = left[(row_lane + quarter) * a.size + a_at + 2 * half + number % 4 // 2]
                weight = _byte(word, part)
                if positive:
                    weight = T.bitwise_and(weight, T.int32(255))
                line = T.cast(place, "int32") + beyond + column * 128 + 16 * half + 4 * quarter + part
                byte = T.bitwise_xor(line, T.shift_left(T.bitwise_and(T.shift_right(line, 7), 7), 4))
                T.buffer_store(total, total[of_thread] + weight * T.cast(shared[byte], "int32"), [of_thread])

    def group_start(self) -> None:
        pass

    def group_commit(self) -> None:
        pass

    def group_wait(self, sets: int, sums: Registers, at: int, count: int) -> None:
        pass

    def share(self) -> None:
        pass

    def load_matrices(self, result: Registers, at: int, count: int, shared: Any, place: Callable[[Expr], Expr]) -> None:
        places = T.alloc_buffer((self.threads,), "int64")
        size = 4 // bytes_of(str(shared.dtype)) if bytes_of(str(shared.dtype)) < 4 else 1
        with self.phase() as thread:
            T.buffer_store(places, T.cast(place(thread), "int64"), [thread])
        with self.phase() as thread:
            warp, lane = thread // WARP * WARP, thread % WARP
            for matrix in range(count):
                start = places[warp + 8 * matrix + lane // 4] + T.cast(lane % 4 * size, "int64")
                result[at + matrix] = _word(shared, start, size)

    def copy_async(
        self, shared: Any, at: Expr, source: Any, index: tuple[Expr, ...], valid: Expr | None = None
    ) -> None:
        count = 16 // bytes_of(str(shared.dtype))
        zero = T.cast(T.int32(0), str(shared.dtype))

        def copy() -> None:
            with _each(count) as n:
                T.buffer_store(shared, source[(*index[:-1], index[-1] + T.cast(n, "int64"))], [T.cast(at, "int32") + n])

        def clear() -> None:
            with _each(count) as n:
                T.buffer_store(shared, zero, [T.cast(at, "int32") + n])

        if valid is None:
            copy()
            return
        with T.If(valid):
            with T.Then():
                copy()
            with T.Else():
                clear()

    def copy_box(
        self, gates: Any, number: Expr | int, shared: Any, at: Expr, box: Box, index: tuple[Expr, Expr]
    ) -> None:
        with _each(box.lines) as line, _each(LINE) as byte:
            row, column = (i + T.cast(n, i.ty.dtype) for i, n in zip(index, (line, byte)))
            place = T.cast(at, "int32") + line * LINE + T.bitwise_xor(byte, line % 8 * 16)
            inside = T.And(row < box.source.shape[0], column < box.source.shape[1])
            with T.If(inside):
                with T.Then():
                    T.buffer_store(shared, box.source[row, column], [place])
                with T.Else():
                    T.buffer_store(shared, T.cast(T.int32(0), str(shared.dtype)), [place])

    def commit(self) -> None:
        pass

    def wait(self, groups: int) -> None:
        pass

    def load_shared(self, result: Registers, at: int, count: int, shared: Any, place: Expr) -> None:
        self.load_vector(result, at, count, shared, (place,))

    def load_vector(
        self, result: Registers, at: int, count: int, source: Any, index: tuple[Expr, ...], keep: bool = False
    ) -> None:
        size = max(1, 4 // bytes_of(str(source.dtype)))
        for number in range(count):
            words = [source[(*index[:-1], index[-1] + (number * size + n))] for n in range(size)]
            result[at + number] = _joined(words, str(source.dtype))


def _byte(word: Expr, part: Expr) -> Expr:
    """One of the four bytes of a word, the lowest first, with its sign, as int32."""
    return T.cast(T.cast(T.shift_right(word, T.cast(part * 8, "uint32")), "int8"), "int32")


def _word(buffer: Any, start: Expr, size: int) -> Expr:
    return _joined([buffer[start + n] for n in range(size)], str(buffer.dtype))


def _joined(parts: list[Expr], dtype: str) -> Expr:
    """Elements in order as one uint32, the first lowest."""
    if len(parts) == 1:
        return T.reinterpret("uint32", parts[0]) if dtype != "uint32" else parts[0]
    bits = 32 // len(parts)
    word = T.uint32(0)
    for number, part in enumerate(parts):
        raw = T.cast(T.reinterpret(f"uint{bits}", part) if dtype != f"uint{bits}" else part, "uint32")
        word = T.bitwise_or(word, T.shift_left(raw, T.uint32(bits * number)))
    return word


class SerialDialect(LlvmDialect):
    """What a GPU's kernels mean, on a processor: the same tasks and thread blocks, in order."""

    def __init__(self, backwards: bool = False) -> None:
        self.backwards = backwards
        self.name = "serial backwards" if backwards else "serial"

    @property
    def fine_grained(self) -> bool:
        return True

    def parallel(self, extent: Expr) -> AbstractContextManager[Expr]:
        loop: AbstractContextManager[Expr] = T.serial(extent)
        return loop

    def prefetch(self, address: Expr, once: bool) -> None:
        pass

    def box(self, source: Any, lines: int) -> Box:
        return Box(source, lines)

    def launch(
        self,
        blocks: tuple[Expr, ...],
        threads: int,
        body: Callable[[Block], None],
        shared_bytes: int = 0,
        early: bool = False,
    ) -> None:
        with ExitStack() as stack:
            index = tuple(stack.enter_context(T.serial(extent)) for extent in blocks)
            block = SerialBlock(index, threads, self.backwards)
            body(block)
            assert block.shared_bytes <= shared_bytes, (block.shared_bytes, shared_bytes)
