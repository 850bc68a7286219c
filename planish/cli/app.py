"""The application: its commands, and how errors reach the user."""

from __future__ import annotations

import traceback

import click
import typer

from planish.cli import (
    CHECK_FAILED,
    INTERRUPTED,
    REFUSED,
    bench,
    compile,
    inspect,
    listing,
    reproduce,
    run_artifact,
    verify,
)
from planish.cli.output import console, error_line
from planish.ir.errors import PlanishError
from planish.passes.pass_base import PassError

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
app.command("passes")(listing.list_passes)
app.command("targets")(listing.list_targets)
app.command("reproduce")(reproduce.reproduce_failure)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Options before the command."""


def run(arguments: list[str]) -> int:
    """Run one command; errors are one line on standard error, with a traceback only after `--debug`."""
    debug = "--debug" in arguments
    try:
        result = app(arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        console().print("interrupted")
        return INTERRUPTED
    except PlanishError as error:
        if debug:
            traceback.print_exc()
        error_line(str(error))
        return CHECK_FAILED if isinstance(error, PassError) else REFUSED
