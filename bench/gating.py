"""Time of a network of gates before and after they are frozen, beside its products: a shared branch and one for each task.

    python bench/gating.py --shares 0 0.25 0.5 0.75 1

Weights are random, and so is which channels are a task's own, a share of all. Prints one JSON line for each share.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch
from measure import take_turns

import planish
from planish.ir import Module
from planish.ir.ops import Conv2d, Linear
from planish.passes.freeze_gates import FreezeGates
from planish.testing.gated_networks import GatedConvolutions

WIDTHS, SIZE, TASKS = (3, 64, 128, 128), 56, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of which channels are a task's own")
    options = parser.parse_args()
    for share in options.shares:
        print(json.dumps({"figure": "gating", **measure(share, options)}), flush=True)


def measure(share: float, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(options.seed)
    network = GatedConvolutions(TASKS, WIDTHS).eval()
    for name, parameter in network.named_parameters():
        if "alpha" in name:
            with torch.no_grad():
                parameter.copy_(torch.where(torch.rand(parameter.shape) < share, 1.0, -1.0))
    images = torch.rand(1, WIDTHS[0], SIZE, SIZE)
    gated = planish.trace(network, (images,), check=False)
    frozen = planish.compress(gated, [FreezeGates()], check=False)
    programs: dict[str, Any] = {
        name: planish.build(model, "host", check=False).load() for name, model in (("gated", gated), ("frozen", frozen))
    }
    for program in programs.values():
        program.device.set_threads(options.threads)
    want, got = (programs[name](images) for name in ("gated", "frozen"))
    calls = {"gated": lambda call: programs["gated"](images), "frozen": lambda call: programs["frozen"](images)}
    timings = take_turns(calls, options.rounds)
    before, after = (multiplications(model.module) for model in (gated, frozen))
    parameters = [sum(p.elements for p in m.module.params.values()) for m in (gated, frozen)]
    of_products, of_time = after / before, timings.ratio("frozen", "gated")
    return {
        "share": share,
        "threads": options.threads,
        "gflop": [round(2 * count / 1e9, 3) for count in (before, after)],
        "parameters": parameters,
        "milliseconds": [round(timings.median(name) * 1e3, 3) for name in ("gated", "frozen")],
        "products left": round(of_products, 3),
        "time left": round(of_time, 3),
        "time over products": round(of_time / of_products, 3),
        "largest difference": max(float((a - b).abs().max()) for a, b in zip(want, got)),
        "rounds": len(timings.rounds),
        "dropped": timings.dropped,
        "disturbed": timings.disturbed,
    }


def multiplications(module: Module) -> int:
    """Multiplications of all convolutions and linear maps in one call of `forward`."""
    total = 0
    for node in module.functions["forward"].nodes:
        if isinstance(node.op, (Conv2d, Linear)):
            weight, shape = node.input_types[1], node.output.type.concrete({})
            assert weight is not None
            columns = shape[1] if isinstance(node.op, Conv2d) else shape[-1]
            total += math.prod(shape) // columns * math.prod(weight.concrete({}))
    return total


if __name__ == "__main__":
    main()
