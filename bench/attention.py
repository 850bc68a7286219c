"""How fast is the attention kernel beside torch's scaled_dot_product_attention? One line of JSON for each figure.

Decode: one query against a long cache, which is bound by memory; as many caches as a model has layers are visited in
turn, so that they come from memory and not from a cache of the processor. Prefill: a causal square, which is bound by
arithmetic; operations count the visible half only. torch is asked in the two ways that share key-value heads, by
``enable_gqa`` and (for decode) by taking the heads of a group for as many queries; the ratio is to the faster one.

    python bench/attention.py [--dtype float32] [--threads 2] [--tile avx512]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LAYERS = 12


@dataclass(frozen=True)
class Shape:
    """Queries and keys of one call; decode has one query."""

    length: int
    keys: int
    heads: int
    kv_heads: int
    size: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="of the caches")
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--tile", help="name of an instruction tile; default: the best one here")
    parser.add_argument("--decode", nargs="*", type=int, default=[2048], metavar="KEYS")
    parser.add_argument("--prefill", nargs="*", type=int, default=[512], metavar="TOKENS")
    parser.add_argument("--heads", nargs=3, type=int, default=[32, 8, 64], metavar=("HEADS", "KV_HEADS", "SIZE"))
    parser.add_argument("--rounds", type=int, default=9)
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
    for length, keys in [(1, keys) for keys in options.decode] + [(tokens, tokens) for tokens in options.prefill]:
        figures = measure(tile, target, Shape(length, keys, *options.heads), options.dtype, options.rounds)
        print(json.dumps({"bench": "attention", **figures, **machine}), flush=True)


def measure(tile: Any, target: Any, shape: Shape, dtype: str, rounds: int) -> dict[str, Any]:
    """The figures of one shape."""
    import torch
    import torch.nn.functional as F
    from measure import take_turns

    from planish.codegen.kernel_passes import compile_kernels
    from planish.codegen.kernels.attention import attention, configure
    from planish.codegen.kernels.kv_cache import pack_cache

    decode = shape.length == 1
    config = configure(
        tile,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        size=shape.size,
        value_size=shape.size,
        scale=shape.size**-0.5,
        cache_dtype=dtype,
    )
    kernel = compile_kernels(attention(config), target)["attention"]
    count = LAYERS if decode else 1
    caches = [torch.randn(2, 1, shape.keys, shape.kv_heads, shape.size).to(getattr(torch, dtype)) for _ in range(count)]
    packed = [(pack_cache(config.keys_layout, k), pack_cache(config.values_layout, v)) for k, v in caches]
    by_head = [cache.transpose(2, 3).contiguous() for cache in caches]
    q = torch.randn(1, shape.length, shape.heads, shape.size)
    start, kv_length = torch.tensor([shape.keys - shape.length]), torch.tensor([shape.keys])
    y = torch.empty_like(q)
    torch_q = q.transpose(1, 2).contiguous().to(caches[0].dtype)
    grouped_q = torch_q.reshape(1, shape.kv_heads, -1, shape.size)

    def ours(call: int) -> None:
        kernel(q, *packed[call % count], start, kv_length, y)

    def shared(call: int) -> torch.Tensor:
        k, v = by_head[call % count]
        return F.scaled_dot_product_attention(torch_q, k, v, is_causal=not decode, enable_gqa=True)

    def grouped(call: int) -> torch.Tensor:
        k, v = by_head[call % count]
        return F.scaled_dot_product_attention(grouped_q, k, v)

    candidates: dict[str, Callable[[int], object]] = {"kernel": ours, "torch": shared}
    if decode:
        candidates["torch_grouped"] = grouped
    with torch.no_grad():
        ours(0)
        error = float((y.transpose(1, 2) - shared(0).float()).abs().max())
        timings = take_turns(candidates, rounds)
    fastest = min((name for name in candidates if name != "kernel"), key=timings.median)
    visible = shape.keys if decode else shape.length * (shape.length + 1) // 2
    seconds = timings.median("kernel")
    return {
        "phase": "decode" if decode else "prefill",
        **vars(shape),
        "dtype": dtype,
        "microseconds": round(seconds * 1e6, 1),
        "torch_microseconds": round(timings.median(fastest) * 1e6, 1),
        "torch_way": fastest,
        "times_as_fast_as_torch": round(timings.ratio(fastest, "kernel"), 3),
        "gflop_per_s": round(4 * shape.heads * shape.size * visible / seconds / 1e9, 1),
        "best_gflop_per_s": round(4 * shape.heads * shape.size * visible / timings.best("kernel") / 1e9, 1),
        "cache_gb_per_s": round(caches[0].numel() * caches[0].itemsize / seconds / 1e9, 2),
        "largest_difference": error,
        "rounds": len(timings.rounds),
        "dropped": timings.dropped,
        "disturbed": timings.disturbed,
    }


if __name__ == "__main__":
    main()
