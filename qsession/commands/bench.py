"""``qsession bench``: the project's benchmarks, on the user's own disk."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from qsession.commands.target import above_zero


def _benchmarks(module: str) -> Any:
    """A module of the benchmarks, from the installed package or from a checkout."""
    package = "qsession.benchmarks" if find_spec("qsession.benchmarks") else "benchmarks"
    return import_module(f"{package}.{module}")


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="The comparisons to run. Default: all.")
    ] = None,
    directory: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="A folder on the disk to measure.")
    ] = Path(),
    out: Annotated[Path | None, typer.Option(help="A folder for JSON and charts.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each library runs a test.")] = 3,
    tasks: Annotated[int, typer.Option(min=1, help="The number of concurrent tasks.")] = 50,
    scale: Annotated[
        float, typer.Option(callback=above_zero, help="The amount of work. Smaller is quicker.")
    ] = 0.5,
) -> None:
    """Compare the speed of qsession with other installed libraries, at equal durability.

    Exit code 0: measured, whether or not a goal was reached; 1: the system refused something; 2:
    wrong arguments.
    """
    try:
        cli = _benchmarks("cli")
        try:
            cli.check(names or [])
        except ValueError as wrong:
            raise typer.BadParameter(str(wrong)) from None
        cli.run_in(directory, names or [], out, rounds, tasks, scale)
    except ModuleNotFoundError as missing:
        if missing.name not in ("psutil", "rich"):
            raise
        typer.secho(
            f"bench needs {missing.name}. Install it with: pip install 'qsession[cli]'", err=True
        )
        raise typer.Exit(1) from None
