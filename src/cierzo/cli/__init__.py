"""The `cierzo` command. Every verb is one file here and imports what is heavy only when it runs."""

import io
import os
import sys
import warnings
from typing import Annotated

import typer

from cierzo.cli.bench import bench
from cierzo.cli.chat import chat
from cierzo.cli.doctor import doctor
from cierzo.cli.evaluate import evaluate
from cierzo.cli.export import export
from cierzo.cli.fit import fit
from cierzo.cli.generate import generate
from cierzo.cli.inspect import inspect
from cierzo.cli.ls import ls, rm
from cierzo.cli.moderate import moderate
from cierzo.cli.pull import pull
from cierzo.cli.quantize import quantize
from cierzo.cli.serve import serve
from cierzo.errors import CierzoError
from cierzo.version import __version__

app = typer.Typer(
    name="cierzo",
    help="Run the Mistral 7B family of open language models on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(chat)
app.command()(generate)
app.command()(pull)
app.command()(ls)
app.command()(rm)
app.command()(inspect)
app.command()(fit)
app.command()(quantize)
app.command()(export)
app.command()(serve)
app.command()(doctor)
app.add_typer(bench, name="bench")
app.add_typer(moderate, name="moderate")
app.add_typer(evaluate, name="eval")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cierzo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run the Mistral 7B family of open language models on this machine."""


def main() -> None:
    """Exit status: 0, 1 for an error told in one line on stderr, 2 for wrong usage, 130 for Ctrl-C."""
    # PyTorch's threads would spin while they wait for each other: 50 times slower when another process has a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an answer may hold characters that the locale has not
    warnings.formatwarning = _as_a_line
    try:
        app(prog_name="cierzo")
    except CierzoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _as_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Of a warning what it says: where in the code it arose is nothing to who uses the command."""
    return f"warning: {message}\n"
