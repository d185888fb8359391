"""Processes of their own for what must start afresh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from .setup import Setup
from .summary import Row

TOP = Path(__file__).resolve().parents[len(__name__.split(".")) - 1]
"""The folder that this package, or the package around it, is imported from."""


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """That of this process, with this package to be found from any folder."""
    path = os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def rows_of(arguments: list[str], env: dict[str, str]) -> Iterator[Row]:
    """Run a child process that prints a row as JSON in each line."""
    with subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield json.loads(line)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)


def text_of(setup: Setup) -> str:
    """The sizes of a run as an argument of a child process."""
    return json.dumps({**asdict(setup), "directory": str(setup.directory)})


def setup_of(text: str) -> Setup:
    """The sizes that a child process was told."""
    settings = json.loads(text)
    return replace(Setup(Path(settings.pop("directory"))), **settings)
