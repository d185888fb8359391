"""Names of files and tables are shown as they are, whatever characters they have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from copy_databases import made
from rich.console import Console
from typer.testing import CliRunner

from qsession.cli import app
from qsession.commands import top, who

NAMES = ("app[prod].db", "[/b].db", "[red].db", ":smile:.db")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments", [["doctor"], ["who"], ["top", "--count", "1", "--interval", "0.05"]], ids=" ".join
)
def test_the_name_of_a_file(tmp_path, monkeypatch, name, arguments):
    """Square brackets and colons, which rich may take for markup, are part of the name."""
    monkeypatch.chdir(tmp_path)
    Path("[").mkdir()
    made(Path(name), "CREATE TABLE t (x)")
    engine = {
        "holder": None, "waiting": 0, "readers": 0, "draining": False, "turn": "",
        "commits": 0, "syncs": 0, "conflicts": 0,
        "waits": {"bounds": [], "counts": [0], "total": 0.0, "maximum": 0.0},
    }  # fmt: skip
    for module in (top, who):
        monkeypatch.setattr(module, "engines_on", lambda _: [(os.getppid(), [engine])])
        monkeypatch.setattr(module, "command_line", lambda _: name)
        monkeypatch.setattr(module, "in_words", lambda *_: name)
    done = CliRunner().invoke(app, [*arguments, name])
    assert done.exit_code == 0, done.output
    assert done.exception is None
    assert name in done.output


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_table(tmp_path, monkeypatch, name):
    """In the bars of a terminal, too. A failure there came after the commit."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # so rich writes as to a terminal
    assert Console(stderr=True).is_terminal
    (tmp_path / "[").mkdir()
    made(tmp_path / name, f'CREATE TABLE "{name}" (x INTEGER PRIMARY KEY)')
    done = CliRunner().invoke(app, ["copy", str(tmp_path / name), str(tmp_path / "to.db")])
    assert done.exit_code == 0, done.output
    assert name in done.stdout
    assert f"copying {name}" in done.stderr
    done = CliRunner().invoke(app, ["backup", str(tmp_path / name), str(tmp_path / "copy.db")])
    assert done.exit_code == 0, done.output
    assert f"copying {Path(name).name}" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["doctor"], ["copy", "--verify"], ["copy", "--check"]], ids=" ".join
)
def test_what_the_encoding_of_the_output_lacks(tmp_path, arguments):
    """It is escaped. The copy was committed, and ended in a traceback all the same."""
    made(tmp_path / "tä.db", "CREATE TABLE tä (x INTEGER PRIMARY KEY)")
    files = ["tä.db"] if arguments == ["doctor"] else ["tä.db", "tö.db"]
    done = subprocess.run(
        [sys.executable, "-m", "qsession", *arguments, *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert rb"t\xe4" in done.stdout
