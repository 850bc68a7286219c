"""How long the spaces of a large model take to find, and how much memory a rotated checkpoint takes to write.

    python bench/spaces.py --layers 80
    python bench/spaces.py --rotate llama-3.2-1b

The first reads a checkpoint folder whose weights are holes in files (Llama's architecture, 8192 elements in the residual
stream): names and shapes are all that spaces are found from. The second folds gains, rotates every space that allows it and
writes the weights, one parameter at a time, in a process of its own whose peak memory it prints. One JSON line a figure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of a model whose spaces are found")
    parser.add_argument("--rotate", metavar="SHAPE", help="of a checkpoint that is rotated and written")
    parser.add_argument(
        "--folder", type=Path, default=Path("out/bench"), help="where checkpoints are kept between runs"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        rotate(options)
    elif options.rotate:
        from shapes import SHAPES

        SHAPES[options.rotate].save(options.folder / f"{options.rotate}-checkpoint")
        command = [sys.executable, __file__, "--rotate", options.rotate, "--folder", str(options.folder), "--child"]
        subprocess.run(command, check=True)
    if options.layers:
        find(options)


def find(options: argparse.Namespace) -> None:
    from shapes import Shape

    from planish.frontends import import_checkpoint
    from planish.ir.spaces.analysis import find_spaces
    from planish.passes.manager import PassManager
    from planish.standard import raising

    shape = Shape(
        hidden=8192, layers=options.layers, heads=64, kv_heads=8, inner=28672, vocabulary=128256, head_size=128
    )
    folder = shape.outline(options.folder / f"outline-{options.layers}", shards=options.layers)
    start = time.perf_counter()
    module, _ = PassManager(raising("attention_mask"), check=False).run(import_checkpoint(folder, check_finite=False))
    traced = time.perf_counter()
    spaces = find_spaces(module)
    found = time.perf_counter()
    scales = sum(space.scales > 0 for space in spaces.spaces)
    solved = time.perf_counter()
    _print(
        "spaces",
        layers=options.layers,
        parameters=sum(p.elements for p in module.params.values()),
        nodes=len(module.functions["forward"].nodes),
        spaces=len(spaces.spaces),
        with_scales=scales,
        trace_seconds=round(traced - start, 2),
        spaces_seconds=round(found - traced, 2),
        scales_seconds=round(solved - found, 2),
    )


def rotate(options: argparse.Namespace) -> None:
    import planish
    from planish.passes.dead_code import DeadCode
    from planish.passes.fold_norm_gains import FoldNormGains
    from planish.passes.rotation_fusion import RotationFusion

    model = planish.trace(options.folder / f"{options.rotate}-checkpoint", check=False)
    start = time.perf_counter()
    rotated = planish.compress(model, [FoldNormGains(), DeadCode(), RotationFusion()], check=False).module
    written = 0
    for name in sorted(rotated.params):
        written += sum(t.numel() * t.element_size() for t in rotated.params[name].storage().values())
    # Not what getrusage says, which begins with the memory of the process that started this one.
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]
    _print(
        "rotate",
        shape=options.rotate,
        gigabytes=round(written / 1e9, 2),
        seconds=round(time.perf_counter() - start, 1),
        peak_gib=round(peak / (1 << 20), 2),
    )


def _print(figure: str, **fields: object) -> None:
    print(json.dumps({"figure": figure, "date": datetime.now(UTC).date().isoformat(), **fields}), flush=True)


if __name__ == "__main__":
    main()
