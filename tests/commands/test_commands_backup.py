"""`qsession backup`, as it is called."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from cancelling import rows
from typer.testing import CliRunner

from qsession.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["backup", *map(str, arguments)])


def made(path):
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("CREATE TABLE t (x)")
        raw.execute("INSERT INTO t VALUES (1)")
    return path


def test_to_a_file_and_to_a_folder(tmp_path):
    """By a name of one's own, or by date and time; the source may be named by its URL."""
    source = made(tmp_path / "app.db")
    done = run(source, tmp_path / "copy.db")
    assert done.exit_code == 0, done.output
    assert "copy.db" in done.output
    assert rows(tmp_path / "copy.db", "SELECT x FROM t") == [(1,)]
    (tmp_path / "kept").mkdir()
    done = run(f"sqlite+aiosqlite:///{source}", tmp_path / "kept")
    assert done.exit_code == 0, done.output
    (copy,) = (tmp_path / "kept").iterdir()
    assert copy.name.startswith("app-2")
    assert rows(copy, "SELECT x FROM t") == [(1,)]


def test_refused(tmp_path):
    """A target that exists, unless it is to be replaced; a source that does not; a server."""
    source = made(tmp_path / "app.db")
    target = tmp_path / "copy.db"
    target.write_text("mine")
    done = run(source, target)
    assert done.exit_code == 1
    assert "--force" in done.output
    assert target.read_text() == "mine"
    assert run(source, target, "--force").exit_code == 0
    assert rows(target, "SELECT x FROM t") == [(1,)]
    assert run(tmp_path / "missing.db", tmp_path / "other.db").exit_code == 2
    done = run("postgresql+asyncpg://me:secret@nowhere/x", tmp_path / "other.db")
    assert done.exit_code == 2
    assert "secret" not in done.output
    done = run(source, tmp_path / "no" / "folder.db")
    assert done.exit_code == 1
    assert "does not exist" in done.output
    done = run(source, source, "--force")
    assert done.exit_code == 1
    assert "is the database itself" in done.output
    assert sorted(each.name for each in tmp_path.iterdir()) == ["app.db", "copy.db"]
