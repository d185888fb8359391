"""``qsession doctor``: the problems of a database, with advice."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qsession.commands.server_health import examine_server
from qsession.commands.target import Database, file_of, url_of
from qsession.tools.doctor import Finding, Level, examine

_COLOURS = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.PROBLEM: "red"}


def doctor(
    target: Database,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the checks that read the whole file.")
    ] = False,
) -> None:
    """Examine a database without changing it.

    Exit code 0: no problem; 1: a warning or a problem; 2: it could not be examined.
    """
    url = url_of(target)
    if url is not None and url.get_backend_name() != "sqlite":
        findings = asyncio.run(examine_server(url))
    else:
        findings = examine(str(file_of(target)), quick)
    worst = max(each.level for each in findings)
    if as_json:
        rows = [{**asdict(each), "level": each.level.name.lower()} for each in findings]
        typer.echo(json.dumps({"target": _shown(target), "findings": rows}, indent=2))
    else:
        _print(findings, target)
    if worst >= Level.WARNING:
        raise typer.Exit(2 if worst is Level.BLIND else 1)


def _shown(target: str) -> str:
    url = url_of(target)
    if url is None or url.get_backend_name() == "sqlite":
        return target
    return url.set(query={}).render_as_string()  # a parameter may be a password


def _print(findings: list[Finding], target: str) -> None:
    table = Table(box=None, pad_edge=False, title=Text(_shown(target)), title_justify="left")
    for name in ("", "check", "found"):
        table.add_column(name, overflow="fold")
    for each in findings:
        colour = _COLOURS.get(each.level, "red")
        told = Text(each.found)
        if each.advice:
            told.append(f"\n{each.advice}", style="italic")
        table.add_row(Text(each.level.name.lower(), style=colour), each.check, told)
    Console().print(table)
