"""How fast are the dense linear kernel and the matrix product beside torch's? One line of JSON for each figure.

One row is bound by memory: weights are visited in turn, more of them than any cache holds, and the bytes per second
stand beside those of a loop that does nothing but read, timed in the same rounds. Many rows are bound by arithmetic:
operations (two a product) per second. torch takes x in the weight's dtype, the kernel in float32.

    python bench/linear_dense.py [--dtype float32] [--threads 2] [--tile avx512]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

COLD_BYTES = 96 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--tile", help="name of an instruction tile; default: the best one here")
    parser.add_argument("--shapes", nargs="*", default=["2048x2048", "6400x2048", "2048x6400"], metavar="OUTxIN")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16, 64, 128, 512])
    parser.add_argument(
        "--products", nargs="*", default=["12x197x64x197", "12x197x197x64", "1x512x512x512"], metavar="BxMxKxN"
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.threads:
        # Before TVM starts, for it reads the number once.
        os.environ["TVM_NUM_THREADS"] = str(options.threads)

    import torch

    from planish.targets.host.detect import detect_host
    from planish.targets.host.float_tiles import FLOAT_TILES

    host = detect_host()
    tiles = {tile.name: tile for tile in host.tiles(FLOAT_TILES)}
    if options.tile and options.tile not in tiles:
        parser.error(f"no tile {options.tile} on this machine: it has {', '.join(tiles)}")
    tile = tiles[options.tile] if options.tile else host.float_tile
    torch.set_num_threads(options.threads or host.cores)
    machine = {"tile": tile.name, "threads": options.threads or host.cores, "cpu": host.model}
    target = host.restricted_to(tile.features).tvm_target()
    for shape in options.shapes:
        out_features, in_features = map(int, shape.split("x"))
        for figures in linear(tile, target, in_features, out_features, options.dtype, options.rows, options.rounds):
            print(json.dumps({"bench": "linear_dense", **figures, **machine}), flush=True)
    for sizes in options.products:
        figures = product(tile, target, tuple(map(int, sizes.split("x"))), options.rounds)
        print(json.dumps({"bench": "matmul", **figures, **machine}), flush=True)


def linear(
    tile: Any, target: Any, in_features: int, out_features: int, dtype: str, rows: list[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """The figures of one weight shape, one number of rows after the other."""
    import torch
    from linear_low_bit import READ_BYTES
    from measure import take_turns

    from planish.codegen.kernel_passes import compile_kernels
    from planish.codegen.kernels.linear_dense import configurations, linear_dense, pack_weight
    from planish.codegen.kernels.peaks import read_tasks, reading

    config = configurations(tile, in_features, out_features, dtype, False)[0]
    kernel = compile_kernels(linear_dense(config), target)["linear_dense"]
    weight = torch.randn(out_features, in_features).to(getattr(torch, dtype))
    copies = COLD_BYTES // (weight.numel() * weight.itemsize) + 1
    weights = [weight.clone() for _ in range(copies)]
    packed = [pack_weight(config, weight) for _ in range(copies)]
    read = compile_kernels(reading(tile.lanes, READ_BYTES // 4, "short"), target)["reading"]
    sources = [torch.ones(READ_BYTES // 4, dtype=torch.int32) for _ in range(COLD_BYTES // READ_BYTES)]
    sums = torch.zeros(read_tasks(tile.lanes, READ_BYTES // 4, "short"), tile.lanes, dtype=torch.int32)

    for count in rows:
        x, y = torch.randn(count, in_features), torch.empty(count, out_features)
        narrow = x.to(weight.dtype)
        candidates: dict[str, Callable[[int], object]] = {
            "kernel": partial(_in_turn, partial(_kernel, kernel, x, y), packed),
            "torch": partial(_in_turn, partial(torch.nn.functional.linear, narrow), weights),
            "read": partial(_in_turn, lambda source: read(source, sums), sources),
        }
        with torch.no_grad():
            timings = take_turns(candidates, rounds)
        size = weight.numel() * weight.itemsize
        yield {
            "out_features": out_features,
            "in_features": in_features,
            "dtype": dtype,
            "rows": count,
            **_speed(timings, 2 * count * out_features * in_features),
            "weight_gb_per_s": round(size / timings.median("kernel") / 1e9, 2),
            "read_gb_per_s": round(READ_BYTES / timings.median("read") / 1e9, 2),
            "share_of_read": round(size / READ_BYTES * timings.ratio("read", "kernel"), 3),
        }


def product(tile: Any, target: Any, sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """The figures of one batched product (batch, rows, depth, columns)."""
    import torch
    from measure import take_turns

    from planish.codegen.kernel_passes import compile_kernels
    from planish.codegen.kernels.matmul import configurations, matmul

    batch, rows, depth, columns = sizes
    config = configurations(tile, batch, None, depth, columns)[0]
    kernel = compile_kernels(matmul(config), target)["matmul"]
    a, b, y = torch.randn(batch, rows, depth), torch.randn(batch, depth, columns), torch.empty(batch, rows, columns)
    timings = take_turns({"kernel": lambda call: kernel(a, b, y), "torch": lambda call: torch.bmm(a, b, out=y)}, rounds)
    names = dict(zip(("batch", "rows", "depth", "columns"), sizes))
    return {**names, **_speed(timings, 2 * batch * rows * depth * columns)}


def _speed(timings: Any, operations: int) -> dict[str, Any]:
    return {
        "microseconds": round(timings.median("kernel") * 1e6, 1),
        "torch_microseconds": round(timings.median("torch") * 1e6, 1),
        "times_as_fast_as_torch": round(timings.ratio("torch", "kernel"), 3),
        "gflop_per_s": round(operations / timings.median("kernel") / 1e9, 1),
        "best_gflop_per_s": round(operations / timings.best("kernel") / 1e9, 1),
        "rounds": len(timings.rounds),
        "dropped": timings.dropped,
        "disturbed": timings.disturbed,
    }


def _kernel(kernel: Any, x: Any, y: Any, weight: Any) -> None:
    kernel(x, weight, y)


def _in_turn(call: Callable[[Any], object], tensors: list[Any], number: int) -> None:
    call(tensors[number % len(tensors)])


if __name__ == "__main__":
    main()
