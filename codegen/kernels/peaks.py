"""What a machine can do at best: loops that only read, only multiply and add, or only sum products of bytes.

They use the same tiles as real kernels, so that a kernel's share of them says how much of the machine it uses.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.tiles.float import Expr, FloatTile
from planish.codegen.tiles.int8 import Int8Tile

STREAMS, UNROLLED = 4, 16
"""Of the reading loop: sums side by side, loads in a row."""
READS = {"short": (64, 0), "long": (1024, 0), "ahead": (256, 4096), "far ahead": (1024, 16384)}
"""Ways to read memory: vectors in a task, and bytes requested ahead. Which is the fastest differs between machines."""


def chains(floats: FloatTile) -> int:
    """Registers that take turns, so that none waits for itself; besides them a loop needs half as many operands."""
    return 12 if floats.registers >= 32 else 6


def reading(lanes: int, elements: int, way: str) -> Any:
    """The PrimFunc ``(source (elements,) int32, sums (tasks, lanes) int32)``: every element is read once.

    ``way`` is a key of READS; there are as many tasks as :func:`read_tasks` says.
    """
    (vectors, ahead), tasks = READS[way], read_tasks(lanes, elements, way)

    def body() -> None:
        source = emit.argument("source", (elements,), "int32")
        target = emit.argument("sums", (tasks, lanes), "int32")
        with emit.tasks("task", tasks) as task:
            sums = emit.scratch("partial", STREAMS * lanes, "int32")
            places = [stream * lanes for stream in range(STREAMS)]
            for place in places:
                emit.store(sums, [place], T.broadcast(T.int32(0), lanes), lanes)
            with emit.loop("block", vectors // UNROLLED) as block:
                for step in range(UNROLLED):
                    at, place = (task * vectors + block * UNROLLED + step) * lanes, places[step % STREAMS]
                    if ahead:
                        emit.prefetch(source, [at + ahead // 4])
                    emit.store(sums, [place], emit.load(sums, [place], lanes) + emit.load(source, [at], lanes), lanes)
            total = [emit.load(sums, [place], lanes) for place in places]
            emit.store(target, [task, T.int64(0)], total[0] + total[1] + total[2] + total[3], lanes)

    return emit.prim_func("reading", body)


def read_tasks(lanes: int, elements: int, way: str) -> int:
    """Tasks into which a way cuts so many elements, the last ones left out if they fill none."""
    return elements // (READS[way][0] * lanes)


def multiplying(tile: FloatTile, tasks: int, steps: int) -> Any:
    """The PrimFunc ``(x (lanes,), y (tasks, chains, lanes))``, float32: y = y * x + x, ``steps`` times in every lane."""
    count, lanes = chains(tile), tile.lanes

    def body() -> None:
        x = emit.argument("x", (lanes,), "float32")
        y = emit.argument("y", (tasks, count, lanes), "float32")
        with emit.tasks("task", tasks) as task:
            sums = emit.registers("sums", count * lanes)
            factor = T.bind(emit.load(x, [T.int64(0)], lanes))
            for chain in range(count):
                emit.store(sums, [chain * lanes], emit.load(y, [task, chain, 0], lanes), lanes)
            with emit.loop("step", steps):
                for chain in range(count):
                    value = tile.fma(emit.load(sums, [chain * lanes], lanes), factor, factor)
                    emit.store(sums, [chain * lanes], value, lanes)
            for chain in range(count):
                emit.store(y, [task, chain, 0], emit.load(sums, [chain * lanes], lanes), lanes)

    return emit.prim_func("multiplying", body)


def activation_bytes(tile: Int8Tile) -> int:
    """Activations of one chain of :func:`summing_products`."""
    return 4 * tile.depth if tile.multiplies_pairs else tile.lanes * tile.depth


def summing_products(tile: Int8Tile, tasks: int, steps: int, rounds: int) -> Any:
    """The PrimFunc ``(weights (steps, bytes), activations (chains, bytes) int8, y (tasks, chains, lanes) int32)``.

    y gains, ``rounds`` times, the products of every row of weights (uint8, at most 7) with the chain's activations: those
    of a row, or of a pair of rows where the tile multiplies pairs.
    """
    count, lanes, width = chains(tile.floats), tile.lanes, tile.lanes * tile.depth
    taken = activation_bytes(tile)

    def body() -> None:
        weights = emit.argument("weights", (steps, width), "uint8")
        activations = emit.argument("activations", (count, taken), "int8")
        y = emit.argument("y", (tasks, count, lanes), "int32")
        with emit.tasks("task", tasks) as task:
            sums = emit.scratch("sums", count * lanes, "int32")
            operands: list[Expr] = [T.bind(emit.load(activations, [chain, 0], taken)) for chain in range(count)]
            for chain in range(count):
                emit.store(sums, [chain * lanes], emit.load(y, [task, chain, 0], lanes), lanes)
            with emit.loop("round", rounds), emit.loop("step", steps) as step:
                weight = T.bind(emit.load(weights, [step, 0], width))
                for chain in range(count):
                    total = emit.load(sums, [chain * lanes], lanes)
                    if tile.multiplies_pairs:
                        total = tile.add_pairs(total, operands[chain], weight)
                    else:
                        accumulator = tile.accumulator(total, 7)
                        accumulator.add(weight, operands[chain])
                        total = accumulator.value()
                    emit.store(sums, [chain * lanes], total, lanes)
            for chain in range(count):
                emit.store(y, [task, chain, 0], emit.load(sums, [chain * lanes], lanes), lanes)

    return emit.prim_func("summing_products", body)
