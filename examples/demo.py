"""The main job on the bundled model: trace, compress to 4 bits, compile, and compare before and after.

Run by `make demo`. Everything it prints is measured here and now; it writes to a temporary folder and opens nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.table import Table

import planish
from planish.evaluation import bits_per_byte
from planish.passes.report import Report
from planish.speed import measure_speed

if TYPE_CHECKING:
    from planish.codegen.runtime.language_model import LanguageModel

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "tiny-llama"
RECIPE = HERE / "recipes" / "w4.yaml"
HELD_OUT = CHECKPOINT / "heldout.txt"
CONTEXT = 512
# Enough of the held-out text for two digits; the whole of it is measured in the model's own README.
WINDOWS = 24
PROMPT = "class Reader:"
SAMPLING = {"max_new_tokens": 80, "temperature": 0.8, "top_p": 0.95, "seed": 0}


def main() -> int:
    console = Console(width=150)
    console.print(f"planish {planish.__version__}: {CHECKPOINT.name} from {CHECKPOINT}")
    steps = _Steps(console)
    model = steps.run("trace", lambda: planish.trace(CHECKPOINT))
    small = steps.run("compress", lambda: planish.compress(model, RECIPE))
    ready = steps.run("prepare", lambda: planish.prepare(small))
    _show_passes(console, [*ready.reports])
    with tempfile.TemporaryDirectory(prefix="planish-demo-") as folder:
        rows = []
        for name, subject in (("bfloat16", model), ("4 bits", ready)):
            artifact = steps.run(f"build {name}", lambda subject=subject: planish.build(subject, "host"))
            program = planish.load(artifact.save(Path(folder) / name.replace(" ", "-")))
            rows.append((name, *_measure(program, subject.nbytes)))
        _show_comparison(console, rows)
        console.print(f"Written by the 4-bit model ({SAMPLING}):", style="bold")
        console.print(PROMPT + program.generate(PROMPT, **SAMPLING), markup=False, highlight=False)
    return 0


class _Steps:
    """Prints what is going on and how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def run(self, name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self._console.print(f"{name}: {time.perf_counter() - start:.1f} s")
        return result


def _measure(program: LanguageModel, weights: int) -> tuple[str, ...]:
    """Size, quality and speed of one artifact."""
    text = HELD_OUT.read_text(encoding="utf-8")
    ids = program.tokenizer.encode(text, special=False)
    first = int(program.metadata["bos_token_id"])
    quality = bits_per_byte(program.logits, ids, program.tokenizer.decode, context=CONTEXT, first=first, limit=WINDOWS)
    speed = measure_speed(program, prompt=256, tokens=64)
    return (
        f"{weights / 1e6:.2f} MB",
        f"{quality.value:.4f}",
        f"{speed['decode']:.0f}",
        f"{speed['prefill']:.0f}",
    )


def _show_passes(console: Console, reports: list[Report]) -> None:
    table = Table(title="Passes, each held to its contract", title_justify="left")
    rows = [row for report in reports for row in report.rows()]
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _show_comparison(console: Console, rows: list[tuple[str, ...]]) -> None:
    table = Table(title=f"Before and after ({WINDOWS} windows of {CONTEXT} tokens)", title_justify="left")
    for column in ("weights", "size", "bits per byte", "decode tokens/s", "prefill tokens/s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
