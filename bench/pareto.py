"""Size against bits per byte of the bundled model: 1, 1.58, 2, 3 and 4 bits, rounded, calibrated and trained.

    python bench/pareto.py
    python bench/pareto.py --widths sign ternary --methods rtn gptq

Every linear map inside the blocks has one scale to a row (ParetoQ's setting) and int8 activations; the table of embeddings,
which is the output head too, has 8 bits in all of them, and norms stay as they are. `rtn` rounds to nearest with the scale
that the encoding states; `gptq` calibrates and `qat` trains, both on the standard library of this Python without the held-out
files (`examples/tiny_llama_training/corpus.py`). The held-out text is what is measured, through the compiled model. Sizes
are those of a safetensors file of the encoded weights. A run that was cut goes on: what is in the folder is not made again.
Prints one JSON line a figure, then a table; draws the plot. Needs the extra "plot".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from planish.ir import Encoding
    from planish.model import Model

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "examples" / "tiny-llama"
WIDTHS: dict[str, float] = {"sign": 1, "ternary": 1.58, "stretched": 2, "3": 3, "4": 4}
METHODS = ("rtn", "gptq", "qat")
CONTEXT, ROWS = 512, 8
# By format, the learning rate and the weight of the original's logits in the loss: the fewer levels, the further weights have
# to move; with many there is little to repair, and the original is the better teacher of it than a new text.
TRAINING = {"sign": (1e-3, 0.0), "ternary": (1e-3, 0.0), "stretched": (1e-3, 0.0), "3": (4e-4, 0.5), "4": (2e-4, 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=300, help=f"of training, {ROWS} windows of {CONTEXT} tokens each")
    parser.add_argument("--samples", type=int, default=128, help=f"windows of {CONTEXT} tokens to calibrate on")
    parser.add_argument("--seed", type=int, default=0, help="of calibration windows and training batches")
    parser.add_argument("--folder", type=Path, default=Path("out/bench/pareto"), help="where a run keeps what is done")
    parser.add_argument("--plot", type=Path, default=Path("out/bench/pareto/pareto.png"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures = [figure(options, "original", "none")]
    for width in options.widths:
        figures += [figure(options, width, method) for method in options.methods]
    print(table(figures))
    plot(figures, options.plot)


def figure(options: argparse.Namespace, width: str, method: str) -> dict[str, Any]:
    """One model's size and quality; read from the folder if it is there."""
    made_by = {"steps": options.steps} if method == "qat" else {"samples": options.samples} if method == "gptq" else {}
    name = "-".join([width, method, *(f"{k}{v}" for k, v in made_by.items()), f"seed{options.seed}"])
    path = options.folder / f"{name}.json"
    if not path.exists():
        start = time.perf_counter()
        model = make(options, width, method, options.folder / f"{name}.checkpoint")
        made = {
            "figure": "pareto",
            "date": datetime.now(UTC).date().isoformat(),
            "width": width,
            "bits": WIDTHS.get(width, 16),
            "method": method,
            "seed": options.seed,
            **made_by,
            "megabytes": round(encoded_bytes(model, options.folder / "weights.safetensors") / 1e6, 3),
            "bits_per_byte": round(quality(model), 4),
            "seconds": round(time.perf_counter() - start),
        }
        fresh = path.with_suffix(".part")
        fresh.write_text(json.dumps(made))
        fresh.rename(path)
    found: dict[str, Any] = json.loads(path.read_text())
    print(json.dumps(found), flush=True)
    return found


def make(options: argparse.Namespace, width: str, method: str, checkpoint: Path) -> Model:
    import planish
    from planish.passes.calibration import Calibration
    from planish.passes.quantize import Quantize
    from planish.passes.quantize_activations import QuantizeActivations
    from planish.passes.selection import Rule

    model = planish.trace(CHECKPOINT, check=False)
    if width == "original":
        return model
    outer = tuple(Rule(kind=kind, format=8, method="rtn") for kind in ("embedding", "head"))  # type: ignore[arg-type]
    format: Any = int(width) if width.isdigit() else width
    step = Quantize(format=format, group="row", method="gptq" if method == "gptq" else "rtn", rules=outer)
    data = None
    if method == "gptq":
        windows = Windows(options.seed)
        data = Calibration(tuple(windows.batch() for _ in range(options.samples // ROWS)))
    small = planish.compress(model, [step], check=False, calibration=data, progress=_say)
    if method == "qat":
        return train(options, model, {n: p.encoding for n, p in small.module.params.items()}, width, checkpoint)
    return planish.compress(small, [QuantizeActivations()], check=False)


def train(
    options: argparse.Namespace, model: Model, chosen: dict[str, Encoding], width: str, checkpoint: Path
) -> Model:
    import planish
    from planish.ir import Grouped
    from planish.training import TrainingOptions

    encodings = {name: encoding for name, encoding in chosen.items() if isinstance(encoding, Grouped)}
    rate, distillation = TRAINING[width]
    training = TrainingOptions(
        steps=options.steps,
        learning_rate=rate,
        distillation=distillation,
        warmup=options.steps // 20,
        clip=1.0,
        activations="int8",
        seed=options.seed,
        checkpoint_every=50,
    )

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 10 == 0:
            _say(step / steps, f"{width}: step {step} of {steps}, loss {loss:.4f}")

    trained = planish.train(
        model,
        Windows(options.seed).batches(options.steps),
        encodings=encodings,
        options=training,
        checkpoint=checkpoint,
        progress=progress,
    )
    checkpoint.unlink()
    return trained


class Windows:
    """Windows of the training text, drawn by a seed, as batches of `forward`."""

    def __init__(self, seed: int, rows: int = ROWS, context: int = CONTEXT) -> None:
        self.rows, self.context = rows, context
        sys.path.insert(0, str(ROOT / "examples"))
        from tiny_llama_training.corpus import standard_library  # type: ignore[import-not-found]

        from planish.codegen.runtime.tokenizer import Tokenizer

        tokenizer = Tokenizer(CHECKPOINT)
        text = [tokenizer.encode(file.text, special=False) for file in standard_library().train]
        self._ids = torch.tensor([n for ids in text for n in ids])
        self._generator = torch.Generator().manual_seed(seed)

    def batch(self) -> dict[str, torch.Tensor]:
        """The next windows: the first token of a text, then those that follow each other."""
        starts = torch.randint(0, len(self._ids) - self.context, (self.rows, 1), generator=self._generator)
        rows = self._ids[starts + torch.arange(self.context)]
        rows[:, 0] = 1
        return {"input_ids": rows, "attention_mask": torch.ones_like(rows, dtype=torch.bool)}

    def batches(self, count: int) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(count):
            yield self.batch()


def encoded_bytes(model: Model, path: Path) -> int:
    """Bytes of a file with the weights as they are encoded."""
    from safetensors.torch import save_file

    save_file(
        {f"{n}.{k}": t.contiguous() for n, p in model.module.params.items() for k, t in p.storage().items()}, path
    )
    size = path.stat().st_size
    path.unlink()
    return size


def quality(model: Model) -> float:
    """Bits per byte of the held-out text, by the compiled model."""
    import planish
    from planish.evaluation import evaluate

    program: Any = planish.build(planish.prepare(model, check=False), "host", check=False).load()
    text = (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8")
    return evaluate(program, text, context=CONTEXT).score.value


def table(figures: list[dict[str, Any]]) -> str:
    """Markdown: a row for each width, a column for each method."""
    original, *rest = figures
    methods = list(dict.fromkeys(f["method"] for f in rest))
    lines = [
        f"original (bfloat16): {original['megabytes']} MB, {original['bits_per_byte']} bits per byte",
        "",
        f"| bits | MB | {' | '.join(methods)} |",
        f"|---|---|{'---|' * len(methods)}",
    ]
    for width in dict.fromkeys(f["width"] for f in rest):
        row = {f["method"]: f for f in rest if f["width"] == width}
        first = next(iter(row.values()))
        cells = [f"{row[m]['bits_per_byte']:.4f}" if m in row else "" for m in methods]
        lines.append(f"| {first['bits']} ({width}) | {first['megabytes']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(figures: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    original, *rest = figures
    drawn, axes = plt.subplots(figsize=(7, 4.5))
    for method in dict.fromkeys(f["method"] for f in rest):
        points = sorted((f["megabytes"], f["bits_per_byte"]) for f in rest if f["method"] == method)
        axes.plot(*zip(*points), marker="o", label=method)
    axes.axhline(original["bits_per_byte"], color="grey", linestyle="--", label="original, bfloat16")
    axes.set_xlabel("encoded weights, MB")
    axes.set_ylabel("bits per byte of the held-out text")
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=150, bbox_inches="tight")


def _say(fraction: float, phrase: str) -> None:
    print(f"{fraction:6.1%}  {phrase}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
