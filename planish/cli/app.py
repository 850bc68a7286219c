"""The application: its commands, and how errors reach the user."""

from __future__ import annotations

import traceback

import typer
from typer.exceptions import TyperException

from planish.cli import (
    CHECK_FAILED,
    INTERRUPTED,
    REFUSED,
    bench,
    compile,
    evaluate,
    export,
    inspect,
    listing,
    reproduce,
    run_artifact,
    verify,
)
from planish.cli.output import console, error_line
from planish.ir.errors import PlanishError
from planish.passes.pass_base import PassError

DEBUG = "--debug"

app = typer.Typer(
    name="planish",
    help="Compress a PyTorch model, prove what each rewrite kept, and compile it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("compile")(compile.compile_model)
app.command("run")(run_artifact.run_model)
app.command("verify")(verify.verify_models)
app.command("inspect")(inspect.inspect_model)
app.command("bench")(bench.bench_artifact)
app.command("export")(export.export_model)
app.command("eval")(evaluate.evaluate_model)
app.command("passes")(listing.list_passes)
app.command("targets")(listing.list_targets)
app.command("reproduce")(reproduce.reproduce_failure)


@app.callback()
def _options(debug: bool = typer.Option(False, DEBUG, help="Show the traceback of an error.")) -> None:
    """Options before the command."""


def run(arguments: list[str]) -> int:
    """Run one command; errors are one line on standard error, with a traceback only after `--debug`."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = DEBUG in options
    try:
        # The switch may stand after the command, too.
        result = app(
            [DEBUG, *(a for a in options if a != DEBUG), *arguments[len(options) :]] if debug else arguments,
            standalone_mode=False,
        )
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console().print("interrupted")
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error)


def _explain(error: Exception) -> int:
    """Print the error's sentence; the exit code that stands for its kind."""
    if isinstance(error, TyperException):
        message = error.format_message().rstrip(".")
        # Without any argument the help is what was asked for, and printed already.
        if message:
            error_line(f"{message}; see `planish --help`")
        return error.exit_code
    if isinstance(error, PlanishError):
        reproducer = getattr(error, "reproducer", None)
        error_line(str(error))
        if reproducer is not None and str(reproducer) not in str(error):
            error_line(f"run it again with: planish reproduce {reproducer}")
        return CHECK_FAILED if isinstance(error, PassError) else REFUSED
    if isinstance(error, OSError):
        error_line(str(error))
        return REFUSED
    error_line(f"{type(error).__name__}: {error}; this is a fault of planish: `--debug` shows where")
    return REFUSED
