"""`qsession doctor`: each thing that can be wrong with a file, and that looking changes nothing."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from qsession import create_async_engine
from qsession.cli import app
from qsession.tools import doctor as health
from qsession.tools.backup import BackupError, back_up
from qsession.tools.doctor import Level, examine

CLEAN = {"file", "file system", "disk space", "SQLite", "WAL size", "journal mode"}
CLEAN |= {"synchronous", "free pages"}


def made(path, *statements, wal=True):
    """A database, by plain sqlite3."""
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        if wal:
            raw.execute("PRAGMA journal_mode=WAL")
        for each in ("CREATE TABLE parents (id INTEGER PRIMARY KEY)", *statements):
            raw.execute(each)
    return str(path)


def found(path, **kw):
    """The findings that are not fine, by the name of their check."""
    return {each.check: each for each in examine(path, **kw) if each.level > Level.OK}


def contents(folder):
    """Names, sizes, times and contents of all files."""
    return {
        each.name: (each.stat().st_size, each.stat().st_mtime_ns, each.read_bytes())
        for each in folder.iterdir()
    }


@pytest.mark.parametrize("wal", [True, False])
def test_nothing_is_changed_by_looking(tmp_path, wal):
    """Neither the file, nor what lies beside it; a clean database has nothing to do."""
    path = made(tmp_path / "app.db", wal=wal)
    before = contents(tmp_path)
    findings = examine(path)
    assert contents(tmp_path) == before
    assert max(each.level for each in findings) <= Level.NOTE
    assert {each.check for each in findings} == CLEAN | {"integrity", "foreign keys"}
    assert {each.check for each in examine(path, quick=True)} == CLEAN
    assert ("journal mode" in found(path)) == (not wal)


async def test_beside_an_application(tmp_path):
    """An application that is in the middle of a write is not disturbed, nor waited for."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO t VALUES (1)"))
        findings = examine(str(tmp_path / "app.db"))
        assert max(each.level for each in findings) <= Level.NOTE
    await engine.dispose()


def test_what_is_called_locked(tmp_path):
    """A damaged schema that names such a table is no lock of another process."""
    path = made(
        tmp_path / "app.db",
        "CREATE TABLE locked (x)",
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = 'nonsense' WHERE name = 'locked'",
    )
    content = found(path)["content"]
    assert "locked" in content.found
    assert "recovery" in content.advice


def with_a_damaged_page(path, root):
    """A file in which one page of a table was overwritten: its root, or one with rows."""
    made(
        path,
        "CREATE TABLE alembic_version (version_num TEXT)",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)",
        "CREATE INDEX i ON t (x)",
        "CREATE TABLE u (id INTEGER PRIMARY KEY, t REFERENCES t)",
        "INSERT INTO u VALUES (1, -1)",
        "WITH n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
        "INSERT INTO t SELECT i, hex(zeroblob(100)) FROM n",
        wal=False,
    )
    with closing(sqlite3.connect(path)) as raw:
        page = dict(raw.execute("SELECT name, rootpage FROM sqlite_master"))[root or "t"]
    with path.open("r+b") as file:
        if not root:  # the last child (https://sqlite.org/fileformat.html, 1.6)
            file.seek((page - 1) * 4096 + 8)
            page = int.from_bytes(file.read(4), "big")
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    return str(path), page


def named(page):
    """How SQLite names a page, at the start of a line. The second form is that of SQLite 3.53."""
    return rf"(?m)^(?:Page|Tree \d+ page) {page}:"


def test_a_damaged_page_of_rows(tmp_path):
    """It is named, and the other checks go on. Python loses what SQLite says of it."""
    path, page = with_a_damaged_page(tmp_path / "app.db", root=None)
    findings = found(path)
    assert findings["integrity"].level is Level.PROBLEM
    assert re.search(named(page), findings["integrity"].found)
    assert "recovery" in findings["integrity"].advice
    assert "1 rows of 'u'" in findings["foreign keys"].found
    assert "content" not in findings
    with pytest.raises(BackupError, match=named(page)):
        back_up(Path(path), tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_a_damaged_table(tmp_path):
    """What refers to it cannot be checked, which is said; other tables can."""
    path, page = with_a_damaged_page(tmp_path / "app.db", root="t")
    findings = found(path)
    assert re.search(named(page), findings["integrity"].found)
    assert "those of 'u' could not be checked" in findings["foreign keys"].found
    assert findings["foreign keys"].level is Level.PROBLEM


def test_a_check_that_meets_damage_ends_no_other(tmp_path):
    """The table of Alembic cannot be read; the checks behind it are done."""
    path, page = with_a_damaged_page(tmp_path / "app.db", root="alembic_version")
    findings = found(path)
    assert findings["content"].level is Level.BLIND
    assert re.search(named(page), findings["integrity"].found)


def test_locked_by_another(tmp_path):
    """What cannot be read is said, with the way to find who is in the way."""
    path = made(tmp_path / "app.db", wal=False)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        content = [each for each in examine(path) if each.level is Level.BLIND]
    assert len(content) == 1
    assert "locked" in content[0].found
    assert "qsession who" in content[0].advice


def test_no_database(tmp_path):
    """A file of something else is no database."""
    path = tmp_path / "app.db"
    path.write_text("Dear diary, " * 200)
    content = found(str(path))["content"]
    assert content.level is Level.BLIND
    assert "encrypted" in content.advice
    assert "recovery" not in content.advice


def test_an_empty_file(tmp_path):
    """It is a database that has no tables yet."""
    path = tmp_path / "app.db"
    path.touch()
    findings = {each.check: each for each in examine(str(path))}
    assert findings["file"].found == "empty: it has no tables yet"
    assert max(each.level for each in findings.values()) <= Level.NOTE


@pytest.mark.parametrize(
    ("message", "advised", "recovery"),
    [
        ("database is locked", "qsession who", False),
        ("database disk image is malformed", "is damaged", True),
        ("malformed database schema (t) - near x: syntax error", "A newer SQLite", True),
        ("file is not a database", "beginning is damaged", True),
        ("unable to open database file", "permissions", False),
        ("disk I/O error", "check the disk", False),
        ("no such module: dbstat", "the application may register", False),
    ],
)
def test_only_damage_is_a_case_for_recovery(tmp_path, message, advised, recovery):
    """What SQLite says, and what it means for the owner of a file that may be healthy."""
    advice = health._remedy(sqlite3.DatabaseError(message), str(tmp_path / "app.db"))
    assert advised in advice
    assert ("recovery" in advice) is recovery


@pytest.mark.skipif(sys.platform == "win32", reason="users and modes of POSIX")
def test_a_file_that_this_user_may_not_read():
    """Nothing is said about its content, least of all that it is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = made(os.path.join(folder, "app.db"), wal=False)
        os.chmod(path, 0)
        with as_nobody():
            content = found(path)["content"]
    assert content.level is Level.BLIND
    assert "Permission denied" in content.found
    assert "user who may read the file" in content.advice


@contextmanager
def as_nobody():
    """Root may read everything; nobody else may."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("free", "level"),
    [(10_000, Level.WARNING), (200 * 2**20, Level.NOTE), (2**40, Level.OK)],
)
def test_disk_space(tmp_path, monkeypatch, free, level):
    """Too little for a WAL, too little for a copy, enough."""
    path = made(tmp_path / "app.db", wal=False)
    monkeypatch.setattr(health, "_size", lambda name: 2**30 if name == path else 0)
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert health._of_space(path).level is level


def test_orphans(tmp_path):
    """Rows that refer to nothing are counted by table."""
    path = made(
        tmp_path / "app.db",
        "CREATE TABLE children (parent REFERENCES parents)",
        "INSERT INTO children VALUES (1), (2), (NULL)",
    )
    problem = found(path)["foreign keys"]
    assert problem.level is Level.PROBLEM
    assert "2 rows of 'children' refer to rows of 'parents'" in problem.found


@pytest.mark.parametrize(
    ("table", "advice"), [("parents", "is complete, drop"), ("gone", "dropped 'gone': rename")]
)
def test_leftovers_of_a_migration(tmp_path, table, advice):
    """The copy of a batch migration that failed: is the table itself there?"""
    path = made(
        tmp_path / "app.db",
        f"CREATE TABLE _alembic_tmp_{table} (id)",
        f"INSERT INTO _alembic_tmp_{table} VALUES (1)",
        "CREATE TABLE alembic_version (version_num)",
        "INSERT INTO alembic_version VALUES ('abc')",
    )
    problem, version = (each for each in examine(path) if each.check == "migrations")
    assert problem.level is Level.PROBLEM
    assert "with 1 rows" in problem.found
    assert advice in problem.advice
    assert version.found == "at abc"


def test_damage(tmp_path):
    """An index that lacks a row."""
    path = made(
        tmp_path / "app.db",
        "CREATE TABLE names (name)",
        "CREATE INDEX by_name ON names (name)",
        "INSERT INTO names VALUES ('Ann'), ('Bob')",
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name ="
        " 'parents') WHERE name = 'by_name'",
    )
    assert "content" in found(path) or found(path)["integrity"].level is Level.PROBLEM


def test_hot_journal(tmp_path):
    """What a killed writer left is named, and left alone."""
    path = made(tmp_path / "app.db", wal=False)
    code = (
        "import os, sqlite3, sys\n"
        "raw = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "raw.execute('PRAGMA cache_size=1')\n"
        "raw.execute('BEGIN')\n"
        "raw.execute('CREATE TABLE t (x)')\n"
        "for _ in range(50): raw.execute('INSERT INTO t VALUES (randomblob(4000))')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)
    before = contents(tmp_path)
    warning, content = found(path)["rollback journal"], found(path)["content"]
    assert warning.level is Level.WARNING
    assert "Never delete the journal" in warning.advice
    assert "rolls the transaction back" in content.advice
    assert contents(tmp_path)["app.db-journal"] == before["app.db-journal"]


def test_a_journal_that_is_done_with(tmp_path):
    """In journal mode PERSIST it stays, with a header of zeros."""
    path = made(tmp_path / "app.db", "PRAGMA journal_mode=PERSIST", "CREATE TABLE t (x)", wal=False)
    assert os.path.getsize(f"{path}-journal")
    assert "rollback journal" not in found(path)


def test_free_pages(tmp_path, monkeypatch):
    """Space that VACUUM would give back."""
    monkeypatch.setattr(health, "FREE_BYTES", 100_000)
    path = made(
        tmp_path / "app.db",
        "CREATE TABLE t (x)",
        "INSERT INTO t SELECT randomblob(4000) FROM pragma_function_list LIMIT 100",
        "DELETE FROM t",
    )
    assert "VACUUM returns" in found(path)["free pages"].advice


def test_large_wal(tmp_path, monkeypatch):
    """A WAL that has grown, seen beside the application that has it open."""
    monkeypatch.setattr(health, "WAL_LARGE", 1)
    path = made(tmp_path / "app.db")
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (x)")
        assert found(path)["WAL size"].level is Level.WARNING


def test_read_only_for_this_user(tmp_path, monkeypatch):
    """Reads work, writes do not."""
    path = made(tmp_path / "app.db", wal=False)
    monkeypatch.setattr(os, "access", lambda name, mode: name != path)
    assert "cannot write to the file" in found(path)["file"].advice


def test_opened_while_it_is_looked_at(tmp_path, monkeypatch):
    """What was read as a file that nobody changes is read again once somebody has opened it."""
    path = made(tmp_path / "app.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        modes = health._of_synchronous

        def and_then(raw):
            other.execute("CREATE TABLE IF NOT EXISTS _alembic_tmp_parents (id)")
            return modes(raw)

        monkeypatch.setattr(health, "_CHECKS", (and_then, health._of_migrations))
        assert "_alembic_tmp_parents" in found(path)["migrations"].found


def test_network(tmp_path, monkeypatch):
    """WAL and a network file system do not go together."""
    path = made(tmp_path / "app.db")
    monkeypatch.setattr(health, "file_system", lambda _: "nfs4")
    assert found(path)["file system"].level is Level.PROBLEM


# The command.


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_exit_codes(tmp_path):
    """0 for a clean file, 1 where there is something to do, 2 where nothing can be seen."""
    path = made(tmp_path / "app.db")
    assert run(path).exit_code == 0
    assert run(f"sqlite+aiosqlite:///{path}").exit_code == 0
    made(tmp_path / "bad.db", "CREATE TABLE _alembic_tmp_parents (id)")
    done = run(tmp_path / "bad.db")
    assert done.exit_code == 1
    assert "_alembic_tmp_parents" in done.output
    assert run(tmp_path / "missing.db").exit_code == 2
    assert not (tmp_path / "missing.db").exists()
    (tmp_path / "text").write_text("x" * 5000)
    assert run(tmp_path / "text").exit_code == 2
    assert run("sqlite://").exit_code == 2
    assert run("nonsense://").exit_code == 2


def test_json(tmp_path):
    """For scripts: each finding with its level and its advice."""
    path = made(tmp_path / "app[1].db", "CREATE TABLE _alembic_tmp_parents (id)")
    done = run(path, "--json")
    told = json.loads(done.output)
    assert told["target"] == path
    (problem,) = [each for each in told["findings"] if each["level"] == "problem"]
    assert problem["check"] == "migrations"
    assert problem["advice"]
    assert path in run(path).output.replace("\n", "")


def test_server_that_does_not_answer():
    """It says so, without the password, and exits with 2."""
    done = run("postgresql+asyncpg://somebody:secret@127.0.0.1:1/nothing")
    assert done.exit_code == 2
    assert "secret" not in done.output
    assert "check host, port, user and password" in " ".join(done.output.split())


def test_hard_links(tmp_path):
    """A file with two names is told of: commits are lost where both are in use."""
    path = made(tmp_path / "app.db")
    os.link(path, tmp_path / "other.db")
    finding = found(path)["hard links"]
    assert finding.level is Level.WARNING
    assert "one name" in finding.advice
