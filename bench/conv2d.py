"""How long does the convolution kernel take beside eager torch? One line of JSON for each layer.

The layers are those of a residual network and of a network with separable convolutions, at one image; the last line is
the geometric mean of the ratios.

    python bench/conv2d.py [--threads 2] [--tile avx512] [--batch 1]
"""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import Any

LAYERS: dict[str, tuple[int, int, int, int, int, int, int]] = {
    # in_channels, out_channels, image, kernel, stride, padding, groups
    "stem 7x7 stride 2": (3, 64, 224, 7, 2, 3, 1),
    "1x1 64-64 at 56": (64, 64, 56, 1, 1, 0, 1),
    "3x3 64-64 at 56": (64, 64, 56, 3, 1, 1, 1),
    "1x1 64-256 at 56": (64, 256, 56, 1, 1, 0, 1),
    "1x1 256-64 at 56": (256, 64, 56, 1, 1, 0, 1),
    "3x3 128-128 stride 2 at 56": (128, 128, 56, 3, 2, 1, 1),
    "3x3 128-128 at 28": (128, 128, 28, 3, 1, 1, 1),
    "1x1 512-128 at 28": (512, 128, 28, 1, 1, 0, 1),
    "1x1 256-512 stride 2 at 56": (256, 512, 56, 1, 2, 0, 1),
    "3x3 256-256 at 14": (256, 256, 14, 3, 1, 1, 1),
    "1x1 256-1024 at 14": (256, 1024, 14, 1, 1, 0, 1),
    "1x1 1024-256 at 14": (1024, 256, 14, 1, 1, 0, 1),
    "3x3 512-512 at 7": (512, 512, 7, 3, 1, 1, 1),
    "1x1 512-2048 at 7": (512, 2048, 7, 1, 1, 0, 1),
    "1x1 2048-512 at 7": (2048, 512, 7, 1, 1, 0, 1),
    "3x3 depthwise 96 at 56": (96, 96, 56, 3, 1, 1, 96),
    "3x3 depthwise 144 stride 2 at 56": (144, 144, 56, 3, 2, 1, 144),
    "5x5 depthwise 240 at 14": (240, 240, 14, 5, 1, 2, 240),
    "3x3 128-128 in 32 groups at 56": (128, 128, 56, 3, 1, 1, 32),
    "16x16 patches 3-768 at 224": (3, 768, 224, 16, 16, 0, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--tile", help="name of an instruction tile; default: the best one here")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS), metavar="LAYER")
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
    ratios = []
    for name in options.layers:
        figures = measure(tile, target, LAYERS[name], options.batch, options.rounds)
        ratios.append(figures["time_over_torch"])
        print(json.dumps({"bench": "conv2d", "layer": name, "batch": options.batch, **figures, **machine}), flush=True)
    mean = round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 3)
    print(json.dumps({"bench": "conv2d", "layers": len(ratios), "mean_time_over_torch": mean, **machine}))


def measure(tile: Any, target: Any, layer: tuple[int, ...], batch: int, rounds: int) -> dict[str, Any]:
    """The figures of one layer."""
    import torch
    from measure import take_turns

    from planish.codegen.kernel_passes import compile_kernels
    from planish.codegen.kernels.conv2d import configurations, conv2d, pack_weight
    from planish.codegen.kernels.conv2d_geometry import ConvGeometry

    inputs, outputs, image, kernel_size, stride, padding, groups = layer
    geometry = ConvGeometry((image, image), (kernel_size, kernel_size), (stride, stride), (padding, padding))
    config = configurations(tile, inputs, outputs, groups, geometry, True)[0]
    kernel = compile_kernels(conv2d(config), target)["conv2d"]
    x, bias = torch.randn(batch, inputs, image, image), torch.randn(outputs)
    weight, y = torch.randn(outputs, inputs // groups, *geometry.kernel), torch.empty(batch, outputs, *geometry.out)
    packed = pack_weight(config, weight)
    with torch.no_grad():
        timings = take_turns(
            {
                "kernel": lambda call: kernel(x, packed, bias, y),
                "torch": lambda call: torch.nn.functional.conv2d(x, weight, bias, stride, padding, 1, groups),
            },
            rounds,
        )
    operations = 2 * y.numel() * config.depth
    return {
        "register_tile": f"{config.rows}x{config.vectors}",
        "microseconds": round(timings.median("kernel") * 1e6, 1),
        "torch_microseconds": round(timings.median("torch") * 1e6, 1),
        "time_over_torch": round(timings.ratio("kernel", "torch"), 3),
        "gflop_per_s": round(operations / timings.median("kernel") / 1e9, 1),
        "best_gflop_per_s": round(operations / timings.best("kernel") / 1e9, 1),
        "rounds": len(timings.rounds),
        "dropped": timings.dropped,
        "disturbed": timings.disturbed,
    }


if __name__ == "__main__":
    main()
