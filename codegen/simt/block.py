"""A block of threads, as a kernel for GPUs is written: in *phases* that every thread runs for itself, and in *collectives*
that threads run together.

Between phases and collectives stand loops and branches that all threads of a block take alike. Each thread has registers,
the block has shared memory. A phase may read what other threads wrote only after a `barrier`. So one text has two meanings:
`targets/cuda` makes a CUDA kernel of it, and `serial.py` runs it on a processor, a phase being a loop over the threads and a
collective the sum its instruction is documented to form. The second is how a schedule is checked where there is no GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from planish.codegen.tiles.float import Expr

WARP = 32
"""Threads that run one instruction together."""


ALIGNMENT = 128
"""Bytes to which each shared buffer is aligned."""
LINE = 128
"""Bytes of a line, as group products read them."""


def bytes_of(dtype: str) -> int:
    """Bytes of one element."""
    return int("".join(c for c in dtype if c.isdigit())) // 8


def rounded_bytes(size: int, dtype: str) -> int:
    """Bytes that a shared buffer takes."""
    return -(-size * bytes_of(dtype) // ALIGNMENT) * ALIGNMENT


class Registers(Protocol):
    """Elements that each thread has for itself; to be used within a phase, at positions known while it is emitted."""

    size: int
    dtype: str

    def __getitem__(self, at: int) -> Expr:
        """Element `at` of the running thread."""
        ...

    def __setitem__(self, at: int, value: Expr) -> None:
        """Emit the store of element `at`."""
        ...


@dataclass(frozen=True)
class Box:
    """A rectangle that is copied whole, wherever in a tensor it lies: `lines` lines of LINE bytes.

    Attributes:
        source: a tensor of bytes of two dimensions, whose rows are a multiple of 16 long.
        map: what the target knows it by.
    """

    source: Any
    lines: int
    map: Any = None


class Block(ABC):
    """The block being emitted.

    Attributes:
        index: its place in the grid, one expression an axis.
        threads: threads it has, a power of two and at least WARP.
    """

    index: tuple[Expr, ...]
    threads: int

    @abstractmethod
    def registers(self, name: str, size: int, dtype: str = "float32") -> Registers:
        """Registers for every thread, undefined at first."""

    @abstractmethod
    def shared(self, name: str, size: int, dtype: str = "float32") -> Any:
        """Shared memory: a buffer of one dimension, undefined at first; addresses are multiples of 128 bytes."""

    @abstractmethod
    def shared_again(self, name: str, size: int, dtype: str = "float32") -> Any:
        """The memory of the first shared buffers for something else, when nobody uses them any more."""

    @abstractmethod
    def phase(self) -> AbstractContextManager[Expr]:
        """``with block.phase() as thread``: what each thread does by itself. `thread` is an int32 expression."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every thread of the block is here, and what they wrote can be read."""

    @abstractmethod
    def warp_barrier(self) -> None:
        """The same for the threads of each warp alone."""

    @abstractmethod
    def gates(self, count: int = 1, arrivals: int | None = None) -> Any:
        """Barriers in two parts, each for so many `arrivals`, or as many as the block has threads. Before they are used,
        there has to be a `barrier`."""

    @abstractmethod
    def arrive(self, gates: Any, number: Expr | int = 0) -> None:
        """The thread says that it is done with what others wait for, and goes on."""

    @abstractmethod
    def expect(self, gates: Any, number: Expr | int, bytes: int) -> None:
        """Within a phase: arrive, and let nobody pass before so many more bytes have been copied."""

    @abstractmethod
    def pass_gate(self, gates: Any, turn: Expr, number: Expr | int = 0) -> None:
        """Wait until all have arrived `turn` + 1 times and what they wrote can be read; none arrives again before."""

    @abstractmethod
    def wait_for_inputs(self) -> None:
        """In a kernel launched `early`: what follows may read what other kernels wrote; what stands before it, only what
        none writes, such as weights."""

    @abstractmethod
    def exchange(self, result: Registers, source: Registers, mask: int) -> None:
        """``result[t] = source[t ^ mask]`` within each warp, for element 0; both are one element, of four bytes."""

    @abstractmethod
    def dot_s8(self, sums: Registers, at: int, a: Expr, b: Expr) -> None:
        """Within a phase: ``sums[at] += a . b``, words (uint32) of four int8 each and an int32, exactly. (PTX: dp4a.)"""

    @abstractmethod
    def bytes_of_two(self, first: Expr, second: Expr, places: tuple[int, int, int, int]) -> Expr:
        """Within a phase: the word of four of the eight bytes of two words (uint32), each by its place. (PTX: prmt.)"""

    @abstractmethod
    def fields_times(self, word: Expr, times: Expr, more: Expr) -> Expr:
        """Within a phase: ``f times + more``, where the halves of f are 8 more than the lowest 4 bits of those of `word`, in
        two's complement."""

    @abstractmethod
    def products_s8(
        self, sums: Registers, at: int, a: Registers, a_at: int, b: Registers, b_at: int, fresh: bool = False
    ) -> None:
        """A warp's ``D += A B``, or ``D = A B`` when `fresh`: A int8 [16, 32], B int8 [32, 8], D int32 [16, 8], exactly.

        Lane t = 4 g + r holds in a[0..3] (uint32, four bytes each, the lowest first) the bytes 4 r ... 4 r + 3 of rows g and
        g + 8, then the bytes 16 + 4 r ... of the same rows; in b[0..1] the bytes 4 r ... and 16 + 4 r ... of column g; in
        sums[0..3] (int32) columns 2 r and 2 r + 1 of rows g and g + 8. (PTX: mma.m16n8k32.s8.)
        """

    @abstractmethod
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
        """Begin ``D += A B``, or ``D = A B`` when `fresh`, of 128 threads in a row: A int8 [64, 32], B int8 [32, columns].
        With `positive`, A is uint8.

        Warp w of the four holds in a[a_at ... a_at + 3] rows 16 w ... of A as in `products_s8`, and in
        sums[at + 4 c ... at + 4 c + 3] (int32) columns 8 c ... of the same rows. Column j of B is the line of 128 bytes at
        ``place + beyond + 128 j`` of shared memory, of which 32 bytes are read; the 16-byte pieces of a line lie exchanged,
        piece q in the place of q ^ (j % 8), and the first line begins at a multiple of 1024 bytes. Neither operands nor sums
        may be touched before `group_wait`. (PTX: wgmma.)
        """

    @abstractmethod
    def group_start(self) -> None:
        """Make registers written so far visible to group products that follow; `share` does so for shared memory."""

    @abstractmethod
    def group_commit(self) -> None:
        """Close a set of the group products begun so far."""

    @abstractmethod
    def group_wait(self, sets: int, sums: Registers, at: int, count: int) -> None:
        """Wait for all group products but those of the last `sets` sets; the `count` sums from `at` on can be read then.

        Where none is read, none may be named: an instruction on sums in use would end the overlap.
        """

    @abstractmethod
    def share(self) -> None:
        """Before a barrier: make what this thread wrote or copied into shared memory visible to group products behind it."""

    @abstractmethod
    def load_matrices(self, result: Registers, at: int, count: int, shared: Any, place: Callable[[Expr], Expr]) -> None:
        """A warp reads `count` (2 or 4) matrices of 8 rows of 16 bytes from shared memory.

        Lane t gives with `place(t)` the element of `shared` at which row t % 8 of matrix t // 8 begins, a multiple of 16
        bytes; it receives in result[at + m] (uint32) bytes 4 (t % 4) ... of row t // 4 of matrix m. (PTX: ldmatrix.)
        """

    @abstractmethod
    def copy_async(
        self, shared: Any, at: Expr, source: Any, index: tuple[Expr, ...], valid: Expr | None = None
    ) -> None:
        """Within a phase: begin to copy 16 bytes from a tensor into shared memory, zeros where not `valid`."""

    @abstractmethod
    def copy_box(
        self, gates: Any, number: Expr | int, shared: Any, at: Expr, box: Box, index: tuple[Expr, Expr]
    ) -> None:
        """Within a phase, by one thread: begin to copy the box whose first element has this index, which a gate expects.

        Pieces of 16 bytes of a line are exchanged: piece p of line n lies at p ^ n % 8. Past the end of the tensor are zeros.
        `at` is a multiple of eight lines. Codes of group products are overwritten only behind a gate that all of their
        threads arrived at. (PTX: cp.async.bulk.tensor.)
        """

    @abstractmethod
    def commit(self) -> None:
        """Close a group of the copies begun so far."""

    @abstractmethod
    def wait(self, groups: int) -> None:
        """Wait until all but the last `groups` groups of copies have arrived; a barrier makes them visible to others."""

    @abstractmethod
    def load_vector(
        self, result: Registers, at: int, count: int, source: Any, index: tuple[Expr, ...], keep: bool = False
    ) -> None:
        """Within a phase: 1, 2 or 4 words of four bytes (uint32) from one aligned place of a tensor that nothing writes.

        `keep` it in the multiprocessor's cache where others will read it too.
        """

    @abstractmethod
    def load_shared(self, result: Registers, at: int, count: int, shared: Any, place: Expr) -> None:
        """Within a phase: 1, 2 or 4 words (uint32) from one aligned place of shared memory."""


def warp_total(block: Block, values: Registers, combine: Callable[[Expr, Expr], Expr], width: int = WARP) -> None:
    """Emit: element 0 of every lane becomes its combination over each `width` neighbouring lanes, formed pairwise."""
    other = block.registers("other", 1, values.dtype)
    mask = width // 2
    while mask:
        block.exchange(other, values, mask)
        with block.phase():
            values[0] = combine(values[0], other[0])
        mask //= 2
