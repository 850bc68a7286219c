"""What Hadamard transforms at run time cost: decode and prefill in 4 bits with int8 activations, with and without them.

    python bench/hadamard.py --shape guard --threads 2

The same network three times: without, with the input of every down projection transformed (SpinQuant's R4), and with queries
and keys transformed too (R3). They take turns; a ratio is the median of those within rounds. Beside them stand loops that
only read memory. The prediction is arithmetic: the operations of the transforms, by the build's report, at the float32 speed
of one core, which is what works on one row. Weights are random: speed depends on shapes. Prints one JSON line a figure.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decode import PREFIX, PROMPT, READ_BYTES, readers

VARIANTS: dict[str, bool | None] = {"without": None, "hidden layers": False, "hidden layers and keys": True}
"""Whether keys are transformed too; None where nothing is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="guard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("out/bench"), help="where models are kept between runs")
    options = parser.parse_args()
    for figure in measure(options.shape, options.threads, options.rounds, options.folder):
        print(json.dumps({"shape": options.shape, "threads": options.threads, **figure}), flush=True)


def build(name: str, folder: Path, variant: str) -> Path:
    """The artifact of one variant; made once."""
    from shapes import SHAPES

    import planish
    from planish.passes.dead_code import DeadCode
    from planish.passes.fold_norm_gains import FoldNormGains
    from planish.passes.online_hadamard import OnlineHadamard
    from planish.passes.pass_base import Pass
    from planish.passes.quantize import Quantize
    from planish.passes.quantize_activations import QuantizeActivations

    artifact = folder / f"{name}-w4g32-{variant.replace(' ', '-')}"
    if not artifact.exists():
        checkpoint = SHAPES[name].save(folder / f"{name}-checkpoint")
        keys = VARIANTS[variant]
        online: list[Pass] = [] if keys is None else [OnlineHadamard(keys=keys)]
        steps = [FoldNormGains(), *online, Quantize(format=4, group=32), QuantizeActivations(), DeadCode()]
        model = planish.compress(planish.trace(checkpoint, check=False), steps, check=False)
        planish.build(model, "host", check=False).save(artifact)
    return artifact


def measure(name: str, threads: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    from measure import conditions, take_turns
    from shapes import SHAPES

    from planish.codegen.runtime.executable import open_artifact

    folder.mkdir(parents=True, exist_ok=True)
    artifacts = {variant: build(name, folder, variant) for variant in VARIANTS}
    models: dict[str, Any] = {v: open_artifact(a, threads=threads, check=False) for v, a in artifacts.items()}
    vocabulary = SHAPES[name].vocabulary
    streams = readers()
    decode = take_turns({**{v: _token(m, vocabulary) for v, m in models.items()}, **streams}, rounds)
    prefill = take_turns({v: _prompt(m, vocabulary) for v, m in models.items()}, rounds)
    bandwidth = max(READ_BYTES / decode.median(way) for way in streams)
    figures = []
    for figure, program, timings in (("decode", "decode", decode), ("prefill", "prefill", prefill)):
        for variant, artifact in artifacts.items():
            figures.append(
                {
                    "figure": figure,
                    "variant": variant,
                    "milliseconds": round(timings.median(variant) * 1e3, 3),
                    "time_over_without": round(timings.ratio(variant, "without"), 4),
                    "read_gb_per_s": round(bandwidth / 1e9, 2),
                    **(_predicted(artifact, program, timings.median("without")) if figure == "decode" else {}),
                    **conditions(timings),
                }
            )
    return figures


def _token(model: Any, vocabulary: int) -> Callable[[int], None]:
    """One token after a prefix, which stays as it is."""
    session = model.session()
    session.read([[n % vocabulary for n in range(PREFIX)]])

    def token(call: int) -> None:
        session.read([[call % vocabulary]])
        session.forget_last(0)

    return token


def _prompt(model: Any, vocabulary: int) -> Callable[[int], None]:
    ids = [n % vocabulary for n in range(PROMPT)]
    return lambda call: model.session().read([ids])


def _predicted(artifact: Path, program: str, without: float) -> dict[str, Any]:
    """Operations, bytes and calls of a program's transforms, and the share of time that the operations take on one core."""
    report = json.loads((artifact / "manifest.json").read_text())["report"]
    steps = [s for s in report["functions"][program]["steps"] if "hadamard" in s["operations"]]
    work, moved = sum(s["work_here"] for s in steps), sum(s["bytes_here"] for s in steps)
    of_one_core = report["operations_per_second"]["float32"] / (os.cpu_count() or 1)
    return {
        "transforms": len(steps),
        "operations": work,
        "bytes": moved,
        "predicted_over_without": round(1 + work / of_one_core / without, 4),
    }


if __name__ == "__main__":
    main()
