"""What rotations are worth: bits per byte of the bundled model at four bits, as it is and with outliers put into it.

    python bench/rotation.py
    python bench/rotation.py --settings W4A8 --seeds 1

Settings: linear maps inside the blocks have four-bit weights, rounded to nearest with one scale to a row, and inputs of 4 or
8 bits with one scale to a token; "KV4" holds keys and values in 4 bits as well. The table of embeddings and the output head
have 8-bit weights and float inputs. Gains of norms are folded in all of them, `none` included. Outliers are put in by
`planish.testing.outliers`: the function stays what it was, and the principal axes of the residual stream lie on few channels.

`random` and `hadamard` are what `rotation-fusion` draws by a seed; `learned` begins at the latter and learns on the standard
library of this Python without the held-out files, its loss the divergence from the model's own logits; `learned + online`
adds Hadamard transforms at run time in front of what no rotation reaches, and of queries and keys where keys are held in 4
bits. The held-out text is what is measured, in float32, by the operations' own meanings on the graph that is deployed.

A run that was cut goes on: what is in the folder is not made again. Prints one JSON line a figure, then tables; draws the
plot. Needs the extra "plot".
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from planish.model import Model
    from planish.passes.pass_base import Pass

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "examples" / "tiny-llama"
MODELS = ("untouched", "injected")
METHODS = ("none", "random", "hadamard", "learned", "learned + online")
RATES = {"W4A4": 5.0, "W4A8": 30.0, "W4A4KV4": 5.0}
"""By setting, of learning: the less is lost, the smaller is its gradient."""
MOMENTUM = 0.9
ROWS, CONTEXT = 4, 256
"""Windows and tokens of a step."""
CHANNELS = 16
"""That outliers are put on."""
MEASURED = 512
"""Tokens in a window of the held-out text."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""By the number of seeds, how many standard errors hold the mean with a probability of 95%."""


@dataclass(frozen=True)
class Cell:
    """One figure: a model, a setting, a method and a seed."""

    model: str
    setting: str
    method: str
    seed: int

    def file(self, steps: int) -> str:
        learned = f"-steps{steps}" if "learned" in self.method else ""
        return "-".join([self.model, self.setting, self.method.replace(" ", ""), f"seed{self.seed}"]) + learned


FULL = Cell("untouched", "float", "none", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 11))
    parser.add_argument("--steps", type=int, default=60, help=f"of learning, {ROWS} windows of {CONTEXT} tokens each")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--share", type=int, help="make only the figures of this worker")
    parser.add_argument(
        "--folder", type=Path, default=Path("out/bench/rotation"), help="where a run keeps what is done"
    )
    parser.add_argument("--plot", type=Path, default=Path("out/bench/rotation/rotation.png"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    cells = list(all_cells(options))
    if options.share is not None:
        torch.set_num_threads(1)
        bench = Bench(options)
        for cell in cells[options.share :: options.workers]:
            bench.figure(cell)
        return
    command = [sys.executable, *sys.argv]
    workers = [subprocess.Popen([*command, "--share", str(n)]) for n in range(options.workers)]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise SystemExit("a worker failed; what it had finished is kept")
    figures = {cell: json.loads(path(options, cell).read_text()) for cell in cells}
    for figure in figures.values():
        print(json.dumps(figure), flush=True)
    quality = {cell: float(figure["bits_per_byte"]) for cell, figure in figures.items()}
    print(table(options, quality))
    plot(options, quality)


def all_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Every figure of the run; long and short ones in turn, and all methods of a seed before the next seed."""
    yield FULL
    for seed in range(options.seeds):
        for setting in options.settings:
            for method in options.methods:
                for model in options.models:
                    if seed == 0 or method != "none":
                        yield Cell(model, setting, method, seed)


def path(options: argparse.Namespace, cell: Cell) -> Path:
    folder: Path = options.folder
    return folder / f"{cell.file(options.steps)}.json"


class Bench:
    """The models, made once, and the figures of cells."""

    def __init__(self, options: argparse.Namespace) -> None:
        from pareto import Windows  # type: ignore[import-not-found]

        import planish
        from planish.passes.dead_code import DeadCode
        from planish.passes.fold_norm_gains import FoldNormGains
        from planish.testing.outliers import inject

        self.options, self.windows = options, Windows
        folded = planish.compress(planish.trace(CHECKPOINT, check=False), [FoldNormGains(), DeadCode()], check=False)
        made = inject(folded.module, [Windows(0).batch()], CHANNELS)
        self.strength = {"untouched": made.before, "injected": made.after}
        self.models = {"untouched": folded, "injected": replace(folded, module=made.module)}

    def figure(self, cell: Cell) -> None:
        """Make a figure, unless it is in the folder."""
        file = path(self.options, cell)
        if file.exists():
            return
        start, passes = time.perf_counter(), passes_of(cell.setting)
        rotated = self.rotated(cell, passes, file.with_suffix(".checkpoint"))
        learned = {"steps": self.options.steps, "rate": RATES[cell.setting]} if "learned" in cell.method else {}
        made = {
            "figure": "rotation",
            "date": datetime.now(UTC).date().isoformat(),
            "model": cell.model,
            "kurtosis": round(self.strength[cell.model].kurtosis, 3),
            "peak": round(self.strength[cell.model].peak, 3),
            "setting": cell.setting,
            "method": cell.method,
            "seed": cell.seed,
            **learned,
            "bits_per_byte": round(bits_per_byte(rotated, passes), 5),
            "seconds": round(time.perf_counter() - start),
        }
        fresh = file.with_suffix(".part")
        fresh.write_text(json.dumps(made))
        fresh.rename(file)
        print(json.dumps(made), file=sys.stderr, flush=True)

    def rotated(self, cell: Cell, passes: list[Pass], checkpoint: Path) -> Model:
        import planish
        from planish.passes.pass_base import Context
        from planish.passes.registry import pass_class
        from planish.passes.rotation_fusion import RotationFusion
        from planish.rotations import RotationOptions

        model = self.models[cell.model]
        if cell.method in ("random", "hadamard"):
            fuse = RotationFusion(kind=cell.method)  # type: ignore[arg-type]
            return replace(model, module=fuse.apply(model.module, Context(seed=cell.seed)).module)
        if cell.method == "none":
            return model
        if cell.method == "learned + online":
            online = pass_class("online-hadamard").from_options({"inputs": True, "keys": "KV" in cell.setting})
            model = planish.compress(model, [online], check=False)
        learning = RotationOptions(
            steps=self.options.steps,
            learning_rate=RATES[cell.setting],
            momentum=MOMENTUM,
            distillation=1.0,
            seed=cell.seed,
            checkpoint_every=20,
            recompute=False,
        )
        found = planish.learn_rotations(
            model,
            self.windows(cell.seed, ROWS, CONTEXT).batches(self.options.steps),
            passes=passes,
            options=learning,
            checkpoint=checkpoint,
            check=False,
        )
        checkpoint.unlink()
        return found


def passes_of(setting: str) -> list[Pass]:
    """What follows the rotations."""
    from planish.passes.quantize import Quantize
    from planish.passes.quantize_activations import QuantizeActivations
    from planish.passes.quantize_cache import QuantizeCache
    from planish.passes.selection import Rule

    if setting == "float":
        return []
    outer = tuple(Rule(kind=kind, format=8) for kind in ("embedding", "head"))  # type: ignore[arg-type]
    bits = 8 if "A8" in setting else 4
    # The head's own weight is what became of the table of embeddings when its gain was folded.
    passes: list[Pass] = [
        Quantize(format=4, group="row", rules=outer),
        QuantizeActivations(bits=bits, ignore=("embed_tokens",)),
    ]
    return [*passes, QuantizeCache(keys="int4", values="int4")] if "KV4" in setting else passes


def bits_per_byte(model: Model, passes: list[Pass]) -> float:
    """Of the held-out text, for the model with the passes run, by the window rule of `planish.evaluation`."""
    from planish.codegen.runtime.tokenizer import Tokenizer
    from planish.evaluation import windows
    from planish.passes.rotation_fusion import Rotatable, rotatable
    from planish.passes.training.deployment import deployment
    from planish.passes.training.rotations import Rotated

    text = (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8")
    cut = windows(Tokenizer(CHECKPOINT).encode(text, special=False), MEASURED, 1)
    spaces = rotatable(model.module, "all").spaces
    network = Rotated(deployment(model.module, passes, "forward"), Rotatable(spaces, (), ()), [])
    # Only the last window may be shorter.
    whole, last = cut[:-1], cut[-1:]
    nats = sum(_nats(network, rows) for rows in [*(whole[at : at + 4] for at in range(0, len(whole), 4)), last])
    return nats / math.log(2) / len(text.encode())


@torch.no_grad()
def _nats(network: Any, rows: list[list[int]]) -> float:
    """The sum of -log p over all tokens but the first ones."""
    ids = torch.tensor(rows)
    logits = network({"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)})["logits"]
    found = torch.log_softmax(logits[:, :-1].double(), -1).gather(-1, ids[:, 1:, None])
    return -float(found.sum())


Quality = dict[Cell, float]


def of_seeds(quality: Quality, model: str, setting: str, method: str, seeds: int) -> list[float]:
    """One number a seed; without rotations they are all the same."""
    return [quality[Cell(model, setting, method, 0 if method == "none" else seed)] for seed in range(seeds)]


def table(options: argparse.Namespace, quality: Quality) -> str:
    """Markdown: means over seeds, with the share of the gap to full precision that is closed; differences, paired by seed."""
    full, methods = quality[FULL], options.methods
    lines = [f"full precision: {full:.4f} bits per byte", "", f"| model, setting | {' | '.join(methods)} |"]
    lines.append(f"|---|{'---|' * len(methods)}")
    rows = [(model, setting) for model in options.models for setting in options.settings]
    for model, setting in rows:
        cells = []
        for method in methods:
            mean = statistics.fmean(of_seeds(quality, model, setting, method, options.seeds))
            closed = ""
            if "none" in methods and method != "none":
                none = quality[Cell(model, setting, "none", 0)]
                closed = f" ({100 * (none - mean) / (none - full):.0f}%)"
            cells.append(f"{mean:.4f}{closed}")
        lines.append(f"| {model}, {setting} | {' | '.join(cells)} |")
    others = [method for method in methods if method != "learned"]
    if "learned" not in methods or options.seeds < 2:
        return "\n".join(lines)
    lines += ["", "learned less the other, 95% intervals:", "", f"| model, setting | {' | '.join(others)} |"]
    lines.append(f"|---|{'---|' * len(others)}")
    for model, setting in rows:
        learned = of_seeds(quality, model, setting, "learned", options.seeds)
        intervals = []
        for method in others:
            paired = zip(learned, of_seeds(quality, model, setting, method, options.seeds))
            differences = [one - other for one, other in paired]
            half = STUDENT[options.seeds] * statistics.stdev(differences) / math.sqrt(options.seeds)
            intervals.append(f"{statistics.fmean(differences):+.4f} ± {half:.4f}")
        lines.append(f"| {model}, {setting} | {' | '.join(intervals)} |")
    return "\n".join(lines)


def plot(options: argparse.Namespace, quality: Quality) -> None:
    """Bits per byte, each seed a point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(1, len(options.models), figsize=(5 * len(options.models), 4), squeeze=False)
    for place, model in zip(axes[0], options.models):
        for number, method in enumerate(options.methods):
            for at, setting in enumerate(options.settings):
                points = of_seeds(quality, model, setting, method, options.seeds)
                x = at + (number - len(options.methods) / 2) * 0.15
                place.plot([x] * len(points), points, "o", color=f"C{number}", label=None if at else method)
        place.axhline(quality[FULL], color="grey", linestyle="--", label="full precision")
        place.set_xticks(range(len(options.settings)), options.settings)
        place.set_title(model)
        place.set_ylabel("bits per byte of the held-out text")
        place.grid(alpha=0.3)
    # Beside the points, wherever they lie.
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncol=6)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(options.plot, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
