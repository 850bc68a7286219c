"""Time of whole networks in float32 beside torch eager: a residual network and a vision transformer, 224 x 224 images.

    python bench/networks.py --threads 1 2

Weights are random: speed depends on shapes. Prints one JSON line for each network, batch and number of threads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from measure import take_turns
from torch.utils.flop_counter import FlopCounterMode

import planish
from planish.testing.networks import residual_network, vision_transformer

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "residual network": residual_network,
    "vision transformer": vision_transformer,
}
SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for name in options.networks:
        for figure in measure(name, options.batches, options.threads, options.rounds):
            print(json.dumps({"network": name, **figure}), flush=True)


def measure(name: str, batches: list[int], threads: list[int], rounds: int) -> list[dict[str, Any]]:
    """One figure for each batch and number of threads; the network is compiled once, for any batch."""
    module = NETWORKS[name]()
    images = torch.rand(max(batches) + 1, 3, SIZE, SIZE)
    model = planish.trace(module, (images,), dynamic_shapes=({0: torch.export.Dim("B")},), check=False)
    ours = planish.build(model, "host", check=False).load()
    figures = []
    for batch in batches:
        for count in threads:
            torch.set_num_threads(count)
            ours.device.set_threads(count)
            figures.append(
                {"batch": batch, "threads": count, **_one(module, ours, images[:batch].contiguous(), rounds)}
            )
    return figures


def _one(module: torch.nn.Module, ours: Any, images: torch.Tensor, rounds: int) -> dict[str, Any]:
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            want = module(images)
        got = ours(images)
        timings = take_turns({"ours": lambda call: ours(images), "torch": lambda call: module(images)}, rounds)
    operations = counter.get_total_flops()
    return {
        "gflop": round(operations / 1e9, 2),
        "milliseconds": round(timings.median("ours") * 1e3, 2),
        "torch_milliseconds": round(timings.median("torch") * 1e3, 2),
        "time_over_torch": round(timings.ratio("ours", "torch"), 3),
        "gflop_per_s": round(operations / timings.median("ours") / 1e9, 1),
        "largest_difference": float((got - want).abs().max()),
        "rounds": len(timings.rounds),
        "dropped": timings.dropped,
        "disturbed": timings.disturbed,
    }


if __name__ == "__main__":
    main()
