"""A loop over tasks that its threads share out while it runs.

TVM's thread pool gives each thread an even stretch of a parallel loop and waits for all of them: where one core is slower
for a moment, because another process or a neighbour of the machine uses it, the others wait for its whole rest. Here the
loop is cut into *portions*, each with a flag in memory, and whoever sets the flag computes the portion. A thread begins
with the stretch it was given, in order, as memory likes it, and goes on with what the others have not begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from planish.codegen.tiles.float import Expr

PORTIONS = 240
"""At most so many: their flags stay on the stack, where TVM puts buffers of less than 1024 bytes."""

_CLAIM = """
define i32 @planish_claim(ptr %flag) {
  %before = load atomic i32, ptr %flag monotonic, align 4
  %free = icmp eq i32 %before, 0
  br i1 %free, label %try, label %no
try:
  %found = atomicrmw xchg ptr %flag, i32 1 monotonic
  %won = xor i32 %found, 1
  ret i32 %won
no:
  ret i32 0
}
"""
"""What TVM has no word for. What lies before and after the loop is ordered by the pool's own synchronisation."""


@contextmanager
def claimed(extent: Expr) -> Iterator[Expr]:
    """The variable of a loop over ``extent`` tasks; what is emitted within is its body.

    Every thread visits its stretch of portions, and from the first that is free on all others in turn, so the first
    thread to end has seen each portion claimed. A portion of its stretch that is taken needs no visit: who took it goes
    on from there as well.
    """
    portions = _held("portions", T.min(extent, T.int64(PORTIONS)))
    flags = IRBuilder.name("claimed", T.alloc_buffer((PORTIONS,), "int32"))
    with T.serial(portions) as portion:
        T.buffer_store(flags, T.int32(0), [portion])

    def claims(portion: Expr) -> Expr:
        return T.call_extern("int32", "planish_claim", T.address_of(flags[portion])) == 1

    with T.attr(tirx.IntImm("int32", 0), "pragma_import_llvm", _CLAIM), T.parallel(portions) as first:
        visits = _held("visits", T.Select(claims(first), portions, T.int64(0)))
        with T.serial(visits) as visit:
            # The first of them is claimed already.
            portion = _held("portion", T.truncmod(first + visit, portions))
            with T.If(T.Or(visit == 0, claims(portion))), T.Then():
                start = _held("start", T.truncdiv(portion * extent, portions))
                end = _held("end", T.truncdiv((portion + 1) * extent, portions))
                with T.serial(start, end) as task:
                    yield task


def _held(name: str, value: Expr) -> Expr:
    """`value`, computed once; see `emit.bind`."""
    cell = IRBuilder.name(name, T.alloc_buffer((1,), "int64"))
    T.buffer_store(cell, value, [0])
    return cell[0]
