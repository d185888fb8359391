"""`qsession copy`, as it is called."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

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
