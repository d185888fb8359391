"""The qsession command."""

from __future__ import annotations

import subprocess
import sys

import pytest
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
