"""The command `kt-ray`: parse, call one function, print. Torch, Ray, Optuna and MLflow are imported when needed."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from kt_ray import __version__
from kt_ray.cli import files, jobs, models, reports, studies, system, zoos
from kt_ray.cli.output import UNWRITABLE, complain, prepare_streams
from kt_ray.errors import KTError

app = typer.Typer(
    name="kt-ray",
    help="Search translators that write a small network block from the parameters of a large one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (studies, reports, zoos, models, files, jobs, system):
    app.add_typer(module.app)


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if debug:
        os.environ["KT_RAY_DEBUG"] = "1"
    if version:
        typer.echo(f"kt-ray {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command. A KTError, or an output that cannot be written, is reported in a line, with exit status 2."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # worker processes of one thread each; see README, limits
    prepare_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except KTError as error:
        if os.environ.get("KT_RAY_DEBUG"):
            raise
        complain(error)
        sys.exit(2)
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITABLE or os.environ.get("KT_RAY_DEBUG"):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes nowhere
        complain(KTError(f"the output cannot be written ({error.strerror}); send it elsewhere"))
        sys.exit(2)
