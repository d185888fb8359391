"""`qsession copy`, as it is called."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from copy_databases import made
from typer.testing import CliRunner

from qsession.cli import app

SCRIPT = """
CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR(10), extra JSON);
INSERT INTO people VALUES (1, 'Ann', '{}'), (2, 'Bob', '[1]');
"""
MODELS = """
from sqlalchemy import Column, Integer, MetaData, String, Table
metadata = MetaData()
Table("people", metadata, Column("id", Integer, primary_key=True), Column("name", String(10)))
"""


def run(*arguments):
    return CliRunner().invoke(app, ["copy", *map(str, arguments)])


def names(file):
    """What is in the table of a file."""
    with closing(sqlite3.connect(file)) as raw:
        return raw.execute("SELECT name FROM people ORDER BY id").fetchall()


def test_done(tmp_path):
    """Files by name or by URL; tables, rows and checksums are shown."""
    url = made(tmp_path / "a.db", SCRIPT)
    done = run(tmp_path / "a.db", tmp_path / "b.db", "--verify")
    assert done.exit_code == 0, done.output
    assert "2 rows copied and verified" in done.output
    assert "people" in done.output
    assert names(tmp_path / "b.db") == [("Ann",), ("Bob",)]
    assert run(url, f"sqlite+qsession:///{tmp_path / 'c.db'}", "--resume").exit_code == 0
    done = run(url, tmp_path / "d.db", "--check")
    assert done.exit_code == 0
    assert "nothing was written" in done.output
    assert not (tmp_path / "d.db").exists()


def test_refused(tmp_path):
    """1 where the copy was refused, with what to do, and 2 where the arguments make no sense."""
    made(tmp_path / "a.db", SCRIPT)
    made(tmp_path / "b.db", SCRIPT.replace("Ann", "Eve"))
    done = run(tmp_path / "a.db", tmp_path / "b.db")
    assert done.exit_code == 1
    assert "--replace" in done.output
    assert names(tmp_path / "b.db")[0] == ("Eve",)
    assert run(tmp_path / "a.db", tmp_path / "b.db", "--replace").exit_code == 0
    assert names(tmp_path / "b.db")[0] == ("Ann",)
    assert run(tmp_path / "missing.db", tmp_path / "c.db").exit_code == 2
    assert run(tmp_path / "a.db", tmp_path / "a.db").exit_code == 2
    assert run(tmp_path / "a.db", "nonsense://x").exit_code == 2
    assert run(tmp_path / "a.db", tmp_path / "no" / "folder.db").exit_code == 2
    assert run(tmp_path / "a.db", tmp_path / "c.db", "--zone", "Nowhere").exit_code == 2
    assert sorted(each.name for each in tmp_path.glob("[a-z].db")) == ["a.db", "b.db"]


def test_models(tmp_path, monkeypatch):
    """Models are found in the working folder; what they do not know is not lost silently."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made(tmp_path / "a.db", SCRIPT)
    (tmp_path / "copied_models.py").write_text(MODELS)
    done = run("a.db", "b.db", "--metadata", "copied_models:metadata")
    assert done.exit_code == 1
    assert "people.extra" in done.output
    with closing(sqlite3.connect("a.db")) as raw:
        raw.execute("ALTER TABLE people DROP COLUMN extra")
    assert run("a.db", "b.db", "--metadata", "copied_models:metadata").exit_code == 0
    assert run("a.db", "c.db", "--metadata", "copied_models:nothing").exit_code == 2


def test_a_server_that_does_not_answer(tmp_path):
    """It says so, without the password, and exits with 2."""
    made(tmp_path / "a.db", SCRIPT)
    for driver in ("postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"):
        done = run(tmp_path / "a.db", f"{driver}://somebody:secret@127.0.0.1:1/nothing")
        assert done.exit_code == 2, done.output
        assert "Nothing was copied" in done.output
        assert "secret" not in done.output


def test_followed(tmp_path, monkeypatch):
    """It switches and runs the command with the new URL. `--clean` opens the file again."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "a.db", f"PRAGMA journal_mode=WAL; {SCRIPT}")
    done = run("a.db", "b.db", "--follow", "--switch", "--switch-command", "echo $QSESSION_URL > u")
    assert done.exit_code == 0, done.output
    assert "2 rows compared" in done.output
    assert (tmp_path / "u").read_text().strip().endswith("b.db")
    assert names(tmp_path / "b.db") == [("Ann",), ("Bob",)]
    with closing(sqlite3.connect("a.db")) as raw, pytest.raises(sqlite3.IntegrityError):
        raw.execute("DELETE FROM people")
    done = run("a.db", "c.db", "--follow", "--switch")
    assert done.exit_code == 1
    assert "has moved to" in done.output
    assert run("a.db", "--clean").output.strip() == "cleaned"
    assert run("a.db", "--clean").exit_code == 0
    with closing(sqlite3.connect("a.db")) as raw:
        raw.execute("DELETE FROM people")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("exit 3", "ended with 3"),
        ("no_such_command_here", "ended with 127"),
        ("kill -9 $$", "was killed by signal 9"),
    ],
)
def test_a_command_that_fails_at_the_switch(tmp_path, command, told):
    """1; the switch was undone, and the target is not complete."""
    made(tmp_path / "a.db", f"PRAGMA journal_mode=WAL; {SCRIPT}")
    files = tmp_path / "a.db", tmp_path / "b.db"
    done = run(*files, "--follow", "--switch", "--switch-command", command)
    assert done.exit_code == 1
    assert told in done.output
    assert "the switch was undone" in done.output
    assert "is behind the source" in done.output
    with closing(sqlite3.connect(files[0])) as raw:
        raw.execute("DELETE FROM people")
    assert run(*files).exit_code == 1


def test_a_command_that_fails_when_the_target_is_in_use(tmp_path):
    """1; the source stays closed. The same command, mended, ends the move."""
    made(tmp_path / "a.db", f"PRAGMA journal_mode=WAL; {SCRIPT}")
    files = tmp_path / "a.db", tmp_path / "b.db"
    (tmp_path / "write.py").write_text(
        "import sqlite3, sys\n"
        "with sqlite3.connect(sys.argv[1]) as raw:\n"
        "    raw.execute('DELETE FROM people WHERE id = 1')\n"
    )
    program = f"{sys.executable} {tmp_path / 'write.py'} {files[1]}"
    done = run(*files, "--follow", "--switch", "--switch-command", f"{program}; exit 3")
    assert done.exit_code == 1
    assert "other rows by now, in people" in done.output
    with closing(sqlite3.connect(files[0])) as raw, pytest.raises(sqlite3.IntegrityError):
        raw.execute("DELETE FROM people")
    done = run(*files, "--follow", "--switch", "--switch-command", "true")
    assert done.exit_code == 0, done.output
    assert "The switch of an earlier run was completed" in done.output
    assert names(files[1]) == [("Bob",)]


@pytest.mark.parametrize(
    ("number", "ended", "told"),
    [(signal.SIGTERM, "", "The move is complete"), (signal.SIGINT, "exit 3", "is behind")],
)
def test_stopped_while_the_command_runs(tmp_path, number, ended, told):
    """It waits for its end, which decides what the message says."""
    made(tmp_path / "a.db", f"PRAGMA journal_mode=WAL; {SCRIPT}")
    command = [sys.executable, "-m", "qsession", "copy", "a.db", "b.db", "--follow", "--switch"]
    (tmp_path / "command.py").write_text("print('runs', flush=True); input()")
    runs = f"{sys.executable} command.py; {ended}"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*command, "--switch-command", runs],
        cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "runs\n"
    process.send_signal(number)
    while "Cleaning up" not in process.stderr.readline():
        assert process.poll() is None
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 128 + number
    assert told in said


def test_options_of_following(tmp_path):
    """2 where they make no sense, and nothing is done."""
    made(tmp_path / "a.db", SCRIPT)
    files = tmp_path / "a.db", tmp_path / "b.db"
    assert run(*files, "--switch").exit_code == 2
    assert run(*files, "--follow", "--switch-command", "x").exit_code == 2
    assert run(*files, "--follow", "--check").exit_code == 2
    assert run(*files, "--follow", "--resume").exit_code == 2
    assert run(*files, "--follow", "--switch", "--switch-timeout", "0").exit_code == 2
    assert run(tmp_path / "a.db").exit_code == 2
    assert run(tmp_path / "no.db", "--clean").exit_code == 2
    assert run(*files, "--follow").exit_code == 1  # it is not in WAL mode
    assert [each.name for each in tmp_path.iterdir()] == ["a.db"]


@pytest.mark.parametrize("source", ["postgresql+asyncpg://127.0.0.1/x", "mysql+asyncmy://a/x"])
def test_a_server_cannot_be_cleaned(source):
    """It is told as by --follow."""
    done = run(source, "--clean")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Nothing was cleaned: only a file of SQLite can be followed\n"


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_nothing_to_clean(tmp_path, mode):
    """A file that was never followed keeps its bytes and its mode, and nothing stays beside it."""
    made(tmp_path / "a.db", f"PRAGMA journal_mode={mode}; {SCRIPT}")
    before = (tmp_path / "a.db").read_bytes()
    done = run(tmp_path / "a.db", "--clean")
    assert (done.exit_code, done.output) == (0, "nothing was there\n")
    assert (tmp_path / "a.db").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.db"]


def test_no_database_to_clean(tmp_path):
    """The message names the file."""
    (tmp_path / "a.db").write_text("no database " * 500)
    done = run(tmp_path / "a.db", "--clean")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"Nothing was cleaned: the source, the file {str(tmp_path / 'a.db')!r}, could not be "
        "opened: file is not a database\n"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["a.db"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_follows(tmp_path, number):
    """It cleans the source, says that the target is behind, and ends as shells expect."""
    made(tmp_path / "a.db", f"PRAGMA journal_mode=WAL; {SCRIPT}")
    command = [sys.executable, "-m", "qsession", "copy", "a.db", "b.db", "--follow"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert "Following" in process.stderr.readline()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "is behind the source" in said
    with closing(sqlite3.connect(tmp_path / "a.db")) as raw:
        assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    assert run(tmp_path / "a.db", tmp_path / "b.db").exit_code == 1
