"""How fast is the low-bit linear kernel on this machine? One line of JSON for each figure.

One row (decode) is bound by memory: weights are visited in turn, more of them than any cache holds, and the bytes per
second stand beside those of a loop that does nothing but read, timed in the same rounds. Many rows (prefill) are bound
by arithmetic: operations (two a product) per second.

    python bench/linear_low_bit.py [--encodings int4 int2 ternary2] [--group 32] [--threads 2] [--tile avx512-vnni]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

COLD_BYTES = 96 << 20
READ_BYTES = 8 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encodings", nargs="+", default=["int4"], metavar="NAME", help="int1 to int8, or a grid of levels"
    )
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--tile", help="name of an instruction tile; default: the best one here")
    parser.add_argument("--shapes", nargs="+", default=["2048x6400", "6400x2048", "4096x4096"], metavar="OUTxIN")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 128, 512])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.threads:
        # Before TVM starts, for it reads the number once.
        os.environ["TVM_NUM_THREADS"] = str(options.threads)

    from planish.targets.host.detect import detect_host
    from planish.targets.host.int8_tiles import INT8_TILES

    host = detect_host()
    tiles = {tile.name: tile for tile in host.tiles(INT8_TILES)}
    if options.tile and options.tile not in tiles:
        parser.error(f"no tile {options.tile} on this machine: it has {', '.join(tiles)}")
    tile = tiles[options.tile] if options.tile else host.int8_tile
    machine = {"tile": tile.name, "threads": options.threads or host.cores, "cpu": host.model}
    target = host.restricted_to(tile.features).tvm_target()
    for shape in options.shapes:
        out_features, in_features = map(int, shape.split("x"))
        for name in options.encodings:
            encoding = encoding_of(name, options.group)
            for figures in measure(tile, target, in_features, out_features, encoding, options.rows, options.rounds):
                print(json.dumps({"bench": "linear_low_bit", **figures, **machine}), flush=True)


def encoding_of(name: str, group: int) -> Any:
    """The encoding of that name with float16 scales."""
    from planish.ir import GroupedInt, Levels

    return GroupedInt(int(name[3:]), group) if name.startswith("int") else Levels(name, group)  # type: ignore[arg-type]


def measure(
    tile: Any, target: Any, in_features: int, out_features: int, encoding: Any, rows: list[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """The figures of one weight shape, one number of rows after the other."""
    import torch
    from measure import take_turns

    from planish.codegen.kernel_passes import compile_kernels
    from planish.codegen.kernels.linear_low_bit import linear_low_bit
    from planish.codegen.kernels.linear_low_bit_config import configurations
    from planish.codegen.kernels.peaks import read_tasks, reading

    config = configurations(tile, in_features, out_features, encoding, False)[0]
    kernel = compile_kernels(linear_low_bit(config), target)["linear_low_bit"]
    size = config.packed_shape[0] * config.packed_shape[1]
    # Bytes below 0x3c keep random float16 scales finite and positive.
    weights = [torch.randint(0, 0x3C, config.packed_shape, dtype=torch.uint8) for _ in range(COLD_BYTES // size + 1)]
    read = compile_kernels(reading(tile.lanes, READ_BYTES // 4, "short"), target)["reading"]
    sources = [torch.ones(READ_BYTES // 4, dtype=torch.int32) for _ in range(COLD_BYTES // READ_BYTES)]
    sums = torch.zeros(read_tasks(tile.lanes, READ_BYTES // 4, "short"), tile.lanes, dtype=torch.int32)

    for count in rows:
        codes = torch.randint(-127, 128, (count, in_features), dtype=torch.int8)
        scale, y = torch.rand(count, 1), torch.empty(count, out_features)
        run = partial(_call, kernel, codes, scale, y, weights)
        timings = take_turns({"kernel": run, "read": lambda call: read(sources[call % len(sources)], sums)}, rounds)
        seconds, best = timings.median("kernel"), timings.best("kernel")
        operations = 2 * count * out_features * in_features
        yield {
            "out_features": out_features,
            "in_features": in_features,
            "encoding": str(encoding),
            "rows": count,
            "microseconds": round(seconds * 1e6, 1),
            "best_microseconds": round(best * 1e6, 1),
            "weight_gb_per_s": round(size / seconds / 1e9, 2),
            "read_gb_per_s": round(READ_BYTES / timings.median("read") / 1e9, 2),
            "share_of_read": round(size / READ_BYTES * timings.ratio("read", "kernel"), 3),
            "gop_per_s": round(operations / seconds / 1e9, 1),
            "best_gop_per_s": round(operations / best / 1e9, 1),
            "rounds": len(timings.rounds),
            "dropped": timings.dropped,
            "disturbed": timings.disturbed,
        }


def _call(kernel: Any, codes: Any, scale: Any, y: Any, weights: list[Any], call: int) -> None:
    kernel(codes, scale, weights[call % len(weights)], y)


if __name__ == "__main__":
    main()
