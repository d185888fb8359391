"""What the system refuses is told in a line; the project that `init` writes needs its models."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import qsession
from qsession.cli import app


def run(*arguments: str) -> Result:
    """A command."""
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["who", "{file}"],
        ["top", "--count", "1", "{file}"],
        ["doctor", "{file}"],
        ["doctor", "--quick", "sqlite:///{file}"],
        ["backup", "{file}", "{folder}/copy.db"],
        ["backup", "{folder}/there.db", "{file}"],
        ["init", "{shut}"],
        ["init", "{file}"],
        ["bench", "--directory", "{folder}/none", "import_time"],
    ],
    ids=" ".join,
)
def test_what_may_not_be_looked_at_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """A folder that may not be entered, one that is none, one that is not there: exit code 1 or 2.

    Root may enter all, so the system refuses by what these tests make of its calls.
    """
    shut = tmp_path / "shut"
    (tmp_path / "there.db").touch()

    for name in ("stat", "mkdir", "exists"):
        real = getattr(Path, name)

        def call(path: Path, *args: object, _real: object = real, **kw: object) -> object:
            if shut == path or shut in path.parents:
                raise PermissionError(13, "Permission denied", str(path))
            return _real(path, *args, **kw)  # type: ignore[operator]

        monkeypatch.setattr(Path, name, call)
    names = {"file": str(shut / "app.db"), "folder": str(tmp_path), "shut": str(shut)}
    done = run(*(each.format(**names) for each in arguments))
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert done.output.strip()


def test_the_version_is_one() -> None:
    """The package, its metadata and the command agree."""
    assert qsession.__version__ == importlib.metadata.version("qsession")
    assert run("version").output.strip() == qsession.__version__


def test_the_package_is_the_command_too() -> None:
    """``python -m qsession``, where the script is not on the path."""
    command = [sys.executable, "-m", "qsession", "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == qsession.__version__


def test_init_says_that_models_are_needed(tmp_path: Path) -> None:
    """Unless they were named: the first migration would be empty, and nothing would say why."""
    told = run("init", str(tmp_path / "one")).output.split("Next:")[1]
    assert "import the modules of your models" in told
    assert "--models module:name" in told
    assert "alembic revision" in told
    told = run("init", str(tmp_path / "two"), "--models", "shop:Base").output.split("Next:")[1]
    assert "models" not in told
