"""What the system refuses is told in a line; the project that `init` writes needs its models."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
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
        ["copy", "{file}", "{folder}/copy.db"],
        ["copy", "{folder}/there.db", "{file}"],
        ["copy", "{folder}/there.db", "{file}", "--check"],
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--scale", "-1"],
        ["bench", "--scale", "0"],
        ["bench", "--scale", "nan"],
        ["bench", "--scale", "inf"],
        ["bench", "--tasks", "0"],
        ["bench", "--rounds", "-2"],
        ["bench", "--tasks", "1.5"],
        ["bench", "--directory", "{file}"],
        ["top", "--interval", "0", "{file}"],
        ["top", "--interval", "inf", "{file}"],
        ["top", "--interval", "1e300", "{file}"],
        ["top", "--count", "0", "{file}"],
        ["who", "{folder}"],
        ["doctor", "{folder}"],
        ["doctor", ""],
        ["doctor", "{folder}/missing.db"],
        ["doctor", "sqlite://"],
        ["doctor", "postgresql://me@host:port/x"],
        ["backup", "{folder}", "{folder}/copy.db"],
        ["copy", "{file}", "{folder}"],
        ["copy", "{folder}", "{file}"],
        ["init", "{folder}/p", "--url", "app.db"],
        ["init", "{folder}/p", "--url", ""],
        ["init", "{folder}/p", "--models", "class:Base"],
        ["nonsense"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_arguments_that_make_no_sense(tmp_path: Path, arguments: list[str]) -> None:
    """Exit code 2, a word about what is wrong, and nothing is made."""
    (tmp_path / "app.db").touch()
    names = {"file": str(tmp_path / "app.db"), "folder": str(tmp_path)}
    done = run(*(each.format(**names) for each in arguments))
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.output.strip()
    assert [each.name for each in tmp_path.iterdir()] == ["app.db"]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes among the files")
@pytest.mark.parametrize("command", [["doctor"], ["who"], ["backup", "{pipe}"], ["copy", "{file}"]])
def test_a_pipe_is_not_waited_for(tmp_path: Path, command: list[str]) -> None:
    """SQLite would open it, and wait for somebody who writes."""
    (tmp_path / "app.db").touch()
    os.mkfifo(tmp_path / "pipe")
    names = {"file": str(tmp_path / "app.db"), "pipe": str(tmp_path / "pipe")}
    done = run(*(each.format(**names) for each in command), names["pipe"])
    assert done.exit_code == 2
    words = " ".join(done.output.replace("│", " ").split())
    assert "is not a regular file" in words


@pytest.mark.parametrize("source", ["text", "damaged"])
@pytest.mark.parametrize("command", ["backup", "copy", "doctor"])
def test_what_is_no_database(tmp_path: Path, command: str, source: str) -> None:
    """A line that says so, and no traceback."""
    file = tmp_path / "app.db"
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("CREATE TABLE t (x)")
        raw.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 50)
        raw.commit()
    if source == "text":
        file.write_text("Dear diary, " * 500)
    else:
        os.truncate(file, 9000)
    done = run(command, str(file), *([] if command == "doctor" else [str(tmp_path / "copy.db")]))
    assert done.exit_code == (1 if (command, source) == ("backup", "damaged") else 2)
    assert isinstance(done.exception, SystemExit)
    assert "database" in done.output


def test_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code that shells give, and a word instead of a traceback."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "app.db").touch()
    monkeypatch.setattr("qsession.commands.doctor.examine", interrupted)
    done = run("doctor", str(tmp_path / "app.db"))
    assert (done.exit_code, done.output) == (130, "Stopped.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_the_benchmarks(tmp_path: Path) -> None:
    """At once, whatever a library that is compared makes of it, and nothing is left."""
    command = [sys.executable, "-m", "qsession", "bench", "--directory", str(tmp_path)]
    with subprocess.Popen(
        [*command, "throughput"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as bench:
        assert bench.stderr is not None
        assert bench.stderr.readline() == "Throughput\n"
        bench.send_signal(signal.SIGINT)
        assert bench.wait(60) == 130
        assert bench.stderr.read().endswith("Stopped.\n")
    assert not list(tmp_path.iterdir())


def test_bench_says_the_number_of_tasks(tmp_path: Path) -> None:
    """The one that it was given, and no other."""
    arguments = ["--tasks", "5", "--rounds", "1", "--scale", "0.001", "--directory", str(tmp_path)]
    done = run("bench", *arguments, "loop_stall", "throughput")
    assert done.exit_code == 0
    assert "5 tasks, rounds: 1, scale 0.001" in done.output
    assert "50 tasks" not in done.output


def test_bench_looks_first_where_it_is_to_keep_results(tmp_path: Path) -> None:
    """Not after ten minutes."""
    (tmp_path / "file").touch()
    done = run("bench", "--directory", str(tmp_path), "--out", str(tmp_path / "file"))
    assert done.exit_code == 1
    assert "File exists" in done.output


def test_the_version_is_one() -> None:
    """The package, its metadata and the command agree."""
    assert qsession.__version__ == importlib.metadata.version("qsession")
    for command in ("version", "--version"):
        assert run(command).output.strip() == qsession.__version__


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
