"""The qsession command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server_databases import database_on
from typer.testing import CliRunner

from qsession.cli import app


def test_without_typer_the_error_names_the_extra() -> None:
    """Without the cli extra the import says what to install."""
    code = "import sys; sys.modules['typer'] = None; import qsession.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'qsession[cli]'" in done.stderr


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["init", "--help"]])
def test_commands_answer(arguments: list[str]) -> None:
    """Each command can be asked for what it is."""
    assert CliRunner().invoke(app, arguments).exit_code == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_top_ends_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """In a terminal, where rich does so, and in a file, where it does not."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    (tmp_path / "a.db").touch()
    arguments = ["top", str(tmp_path / "a.db"), "--count", "2", "--interval", "0.05"]
    told = CliRunner().invoke(app, arguments).stdout.removesuffix("\x1b[?25h")
    assert told.endswith("\n")
    assert not told.endswith("\n\n")


@pytest.mark.parametrize(("kind", "product"), [("postgresql", "PostgreSQL"), ("mysql", "MariaDB")])
def test_doctor_names_the_product(kind: str, product: str) -> None:
    """MariaDB, which has the dialect of MySQL, too."""
    with database_on(kind) as url:
        done = CliRunner().invoke(app, ["doctor", url.render_as_string(hide_password=False)])
    assert done.exit_code == 0, done.output
    assert f"{product} 1" in done.output
