"""GPTQ of a whole model in bounded memory: peak memory, and a run killed at random that goes on to the same bits.

    python bench/gptq.py --shape llama-3.2-1b
    python bench/gptq.py --shape llama-3.2-1b --kill

Weights and calibration tokens are random: memory depends on shapes. With `--kill` a second run, in a workspace, is killed
after a random number of weights (drawn by `--seed`) and started again; its weights must have the bits of the first run.
Prints one JSON line a figure.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--format", type=int, default=4, help="bits of the weights")
    parser.add_argument("--samples", type=int, default=4, help="windows of calibration tokens")
    parser.add_argument("--length", type=int, default=512, help="tokens in a window")
    parser.add_argument("--refine", type=int, default=1, help="0 for GPTQ as published, with --no-follow")
    parser.add_argument("--follow", action=argparse.BooleanOptionalAction, default=True, help="run the original beside")
    parser.add_argument("--kill", action="store_true", help="also kill a run and let it go on")
    parser.add_argument("--seed", type=int, default=0, help="of the place where the run is killed")
    parser.add_argument(
        "--folder", type=Path, default=Path("out/bench"), help="where the checkpoint is kept between runs"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        quantize(options, options.child)
        return
    from shapes import SHAPES

    SHAPES[options.shape].save(options.folder / f"{options.shape}-checkpoint")
    whole, figure = run(options, options.folder / "gptq-whole")
    print(json.dumps({"figure": "gptq", **figure}), flush=True)
    if options.kill:
        after = random.Random(options.seed).randrange(1, figure["weights"] - 1)
        workspace = options.folder / "gptq-killed"
        run(options, workspace, after)
        digest, figure = run(options, workspace, fresh=False)
        print(json.dumps({"figure": "gptq resumed", "killed after": after, "same bits": digest == whole, **figure}))
        if digest != whole:
            sys.exit("the resumed run has other bits")


def run(
    options: argparse.Namespace, workspace: Path, kill_after: int | None = None, fresh: bool = True
) -> tuple[str, dict[str, Any]]:
    """A run in a process of its own: the digest of its weights, and its figure; both empty when it was killed."""
    if fresh:
        shutil.rmtree(workspace, ignore_errors=True)
    start = time.perf_counter()
    weights, digest, last = 0, "", {}
    command = [sys.executable, __file__, *sys.argv[1:], "--child", str(workspace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                last = json.loads(line)
                digest = last.pop("digest")
                continue
            weights += 1
            print(f"{weights:4d} {time.perf_counter() - start:7.1f} s  {line.rstrip()}", file=sys.stderr, flush=True)
            if weights == kill_after:
                child.send_signal(signal.SIGKILL)
                return "", {}
    if child.returncode:
        sys.exit(f"the run failed with status {child.returncode}")
    figure = {
        "date": datetime.now(UTC).date().isoformat(),
        "shape": options.shape,
        "bits": options.format,
        "refine": options.refine,
        "follow": options.follow,
        "calibration tokens": options.samples * options.length,
        "weights": weights,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return digest, {**figure, **last}


def quantize(options: argparse.Namespace, workspace: Path) -> None:
    """In the child: a line for each weight, then one with the peak of memory and the digest of the result."""
    import hashlib

    import torch

    import planish
    from planish.passes.calibration import Calibration
    from planish.passes.quantize import Quantize
    from planish.passes.selection import Rule

    model = planish.trace(options.folder / f"{options.shape}-checkpoint", check=False)
    vocabulary = int(model.module.params["lm_head.weight"].type.shape[0])
    ids = torch.randint(0, vocabulary, (options.samples, options.length), generator=torch.Generator().manual_seed(1))
    batches = tuple(
        {"input_ids": row, "attention_mask": torch.ones_like(row, dtype=torch.bool)} for row in ids.split(1)
    )
    step = Quantize(
        format=options.format,
        group=128,
        method="gptq",
        refine=options.refine,
        follow=options.follow,
        rules=(Rule(kind="embedding", format=4, method="rtn"),),
    )

    def progress(fraction: float, phrase: str) -> None:
        if "mean squared error" in phrase:
            print(phrase, flush=True)

    calibration = Calibration(batches, memory=256 << 20, workspace=workspace)
    small = planish.compress(model, [step], check=False, calibration=calibration, progress=progress)
    digest = hashlib.sha256()
    for name, param in sorted(small.module.params.items()):
        if name in step_names(small):
            digest.update(param.digest().encode())
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    details = small.reports[-1].passes[-1].details
    resumed = details.get("resumed", 0)
    print(json.dumps({"digest": digest.hexdigest(), "peak_gib": round(peak / 2**30, 2), "resumed weights": resumed}))


def step_names(model: Any) -> set[str]:
    """The parameters that were quantised."""
    from planish.ir import Grouped

    return {name for name, param in model.module.params.items() if isinstance(param.encoding, Grouped)}


if __name__ == "__main__":
    main()
