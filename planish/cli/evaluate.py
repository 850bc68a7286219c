"""`planish eval`: how well a model predicts a text, beside the model it was made from, or its scores on tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from planish.cli.output import JSON, console, print_json, print_mapping, progress, table
from planish.cli.source import is_artifact, open_generator, open_model
from planish.ir import InputError
from planish.standard import GENERATES

if TYPE_CHECKING:
    from planish.codegen.runtime.language_model import LanguageModel
    from planish.evaluation import Evaluation

COLUMNS = ("", "perplexity per token", "bits per byte", "tokens", "bytes", "seconds")


def evaluate_model(
    model: Path = typer.Argument(..., help="An artifact's folder, or a checkpoint folder."),
    text: Path = typer.Argument(None, help="A text file in UTF-8; left out with --tasks."),
    against: Path = typer.Option(None, help="Compare with this original, an artifact's or a checkpoint folder."),
    context: int = typer.Option(None, help="Tokens in a window; 512 by default, or what the model was built for."),
    windows: int = typer.Option(None, help="Measure the first so many windows; all of the text by default."),
    tasks: str = typer.Option(None, help="Scores on these tasks of lm-eval instead, separated by commas."),
    limit: int = typer.Option(None, help="With --tasks: at most so many documents of each task."),
    include: Path = typer.Option(None, help="With --tasks: a folder with further tasks, as YAML files of lm-eval."),
    threads: int = typer.Option(None, help="Threads to use at most; all cores by default."),
    json: bool = JSON,
) -> None:
    """Measure perplexity and bits per byte on a text, or scores on tasks."""
    if (text is None) == (tasks is None):
        raise typer.BadParameter("give either a text or --tasks")
    if tasks is not None:
        if not (against is None and context is None and windows is None):
            raise typer.BadParameter("--against, --context and --windows need a text")
        _score(model, [name.strip() for name in tasks.split(",")], limit, include, threads, json)
        return
    if not (limit is None and include is None):
        raise typer.BadParameter("--limit and --include need --tasks")
    # What cannot be read is refused before anything takes time.
    content = _read(text)
    if against is None:
        _evaluate(model, content, context, windows, threads, json)
    else:
        _compare(against, model, content, context, windows, threads, json)


def _evaluate(
    model: Path, text: str, context: int | None, windows: int | None, threads: int | None, json: bool
) -> None:
    from planish.evaluation import evaluate

    with _opened(model, threads) as program, progress("evaluating") as move:
        found = evaluate(program, text, context=context, limit=windows, progress=move)
    if json:
        print_json({"model": _facts(found), "window_rule": found.rule})
        return
    table("Evaluation", COLUMNS, [_row("model", found)])
    _show_rule(found)


def _compare(
    original: Path, model: Path, text: str, context: int | None, windows: int | None, threads: int | None, json: bool
) -> None:
    from planish.evaluation import compare

    with _opened(original, threads) as first, _opened(model, threads) as second, progress("comparing") as move:
        found = compare(first, second, text, context=context, limit=windows, progress=move)
    apart = found.divergence
    if json:
        difference = {
            "mean_kl_nats": apart.mean_kl,
            "kl_99_nats": apart.kl_99,
            "agreement": apart.agreement,
            "bits_per_byte_difference": found.bits_per_byte_difference,
        }
        sides = {"model": _facts(found.model), "original": _facts(found.original)}
        print_json({**sides, "against_original": difference, "window_rule": found.model.rule})
        return
    table("Evaluation", COLUMNS, [_row("original", found.original), _row("model", found.model)])
    facts = {
        "mean KL(original || model), nats per token": f"{apart.mean_kl:.4g}",
        "its 99th percentile": f"{apart.kl_99:.4g}",
        "same top-1 token": f"{apart.agreement:.2%}",
        "bits per byte, model - original": f"{found.bits_per_byte_difference:+.4f}",
    }
    print_mapping("Model against original", facts)
    _show_rule(found.model)


def _score(
    model: Path, tasks: list[str], limit: int | None, include: Path | None, threads: int | None, json: bool
) -> None:
    # It is missing or not before anything takes time.
    from planish.lm_eval_adapter import score_tasks

    with _opened(model, threads) as program, progress("scoring") as move:
        found = score_tasks(program, tasks, limit=limit, include=include, progress=move)
    scores = {task: _scores(metrics) for task, metrics in found.items()}
    if json:
        print_json({"tasks": scores})
        return
    rows = [(task, name, f"{value:.4f}") for task, metrics in scores.items() for name, value in metrics.items()]
    table("Scores", ("task", "metric", "value"), rows)


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers among a task's results, which hold its name and counts as well."""
    return {name: float(value) for name, value in metrics.items() if "," in name and isinstance(value, (int, float))}


def _read(path: Path) -> str:
    """The text of a file, byte for byte: line ends stay as they are, for bytes are counted."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"the text {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text {path} is not UTF-8: {error.reason} at byte {error.start}; convert it first"
        ) from error


@contextmanager
def _opened(path: Path, threads: int | None) -> Iterator[LanguageModel]:
    """An artifact, or a checkpoint built for this machine for as long as it is used."""
    import planish

    if is_artifact(path):
        yield open_generator(path, threads, None)
        return
    model = open_model(path)
    if model.module.metadata.get("kind") not in GENERATES:
        raise InputError(f"{path} does not generate text, so there are no predictions of tokens to measure")
    console().print(
        f"{path} is no artifact: it is built for this machine in a temporary folder", markup=False, soft_wrap=True
    )
    with tempfile.TemporaryDirectory(prefix="planish-eval-") as folder:
        with progress("building") as move:
            built = planish.build(model, "host", progress=move).save(Path(folder) / "artifact")
        yield open_generator(built, threads, None)


def _row(name: str, found: Evaluation) -> tuple[object, ...]:
    score = found.score
    perplexity, bits = f"{score.perplexity:.4f}", f"{score.value:.4f}"
    return (name, perplexity, bits, score.tokens, score.bytes, f"{found.seconds:.1f}")


def _facts(found: Evaluation) -> dict[str, Any]:
    return {
        "perplexity": found.score.perplexity,
        "bits_per_byte": found.score.value,
        "tokens": found.score.tokens,
        "bytes": found.score.bytes,
        "context": found.context,
        "windows": found.windows,
        "seconds": found.seconds,
    }


def _show_rule(found: Evaluation) -> None:
    console().print(f"window rule: {found.rule}", markup=False, soft_wrap=True)
