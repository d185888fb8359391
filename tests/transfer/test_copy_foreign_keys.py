"""Foreign keys that SQLite takes, and a server would not: left out, and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from copy_databases import ask, made

from qsession import CopyError, copy

CHILD = "CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES {to});"
PARENT = "CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER);"
ROW = "INSERT INTO c VALUES (1, {value});"
NO_KEY = "which has no such key"
LEFT_OUT = {
    "a table that is not there": (CHILD.format(to="gone"), "5", f"gone, {NO_KEY}"),
    "a column of none": (CHILD.format(to="gone (id)"), "NULL", f"gone, {NO_KEY}"),
    "a column that is not there": (PARENT + CHILD.format(to="t (y)"), "NULL", f"t, {NO_KEY}"),
    "the row number": (PARENT + CHILD.format(to="t (rowid)"), "NULL", f"t, {NO_KEY}"),
    "a key of two columns": (
        "CREATE TABLE t (a, b, PRIMARY KEY (a, b));" + CHILD.format(to="t"),
        "NULL",
        f"t, {NO_KEY}",
    ),
    "a table without a key": ("CREATE TABLE t (a);" + CHILD.format(to="t"), "NULL", f"t, {NO_KEY}"),
    "a view": (
        PARENT + "CREATE VIEW v AS SELECT id FROM t;" + CHILD.format(to="v (id)"),
        "NULL",
        f"v, {NO_KEY}",
    ),
    "a virtual table": (
        "CREATE VIRTUAL TABLE v USING fts5 (x);" + CHILD.format(to="v (x)"),
        "NULL",
        f"v, {NO_KEY}",
    ),
    "a column that is no key": (
        PARENT + "INSERT INTO t VALUES (1, 1);" + CHILD.format(to="t (x)"),
        "1",
        "t: x is not a key of that table",
    ),
    "a partial index": (
        PARENT + "CREATE UNIQUE INDEX i ON t (x) WHERE x > 0;" + CHILD.format(to="t (x)"),
        "NULL",
        "t: x is not a key of that table",
    ),
    "a column of another type": (
        PARENT
        + "INSERT INTO t VALUES (1, 1);"
        + CHILD.format(to="t").replace("p INTEGER", "p TEXT"),
        "'1'",
        "t: id of that table has another type",
    ),
}
"""To what it leads: the tables, the value of the child, and the end of the note."""


@pytest.mark.servers
@pytest.mark.parametrize("to", LEFT_OUT)
@pytest.mark.parametrize("kind", ["psycopg", "asyncmy"])
async def test_it_is_left_out(new: Any, tmp_path: Path, kind: str, to: str) -> None:
    """The rows are copied, and a check says the same as the copy."""
    script, value, told = LEFT_OUT[to]
    source, here = made(tmp_path / "s.db", script + ROW.format(value=value)), await new(kind)
    checked = await copy(source, here, check=True)
    report = await copy(source, here, verify=True)
    assert f"c: left out the foreign key of p to {told}" in report.notes
    assert checked.notes == report.notes
    assert await ask(here, "SELECT count(*) FROM c") == [(1,)]


@pytest.mark.parametrize("to", LEFT_OUT)
async def test_from_file_to_file_it_stays(tmp_path: Path, to: str) -> None:
    """The table is made by its own statement, and SQLite takes that again."""
    script, value, _ = LEFT_OUT[to]
    source = made(tmp_path / "s.db", script + ROW.format(value=value))
    target = f"sqlite+aiosqlite:///{tmp_path}/t.db"
    assert (await copy(source, target, check=True)).rows > 0
    await copy(source, target, verify=True)
    read = "SELECT sql FROM sqlite_master WHERE name = 'c'"
    assert await ask(target, read) == await ask(source, read)


KEPT = {
    "the primary key": PARENT + CHILD.format(to="t"),
    "in another case": PARENT + CHILD.format(to="T (ID)"),
    "a unique index": PARENT + "CREATE UNIQUE INDEX i ON t (x);" + CHILD.format(to="t (x)"),
    "a constraint": PARENT.replace("x INTEGER", "x INTEGER UNIQUE") + CHILD.format(to="t (x)"),
    "two columns in another order": (
        "CREATE TABLE t (id INTEGER, x INTEGER, PRIMARY KEY (x, id));"
        "CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER, q INTEGER, "
        "FOREIGN KEY (p, q) REFERENCES t (id, x));"
    ),
}


@pytest.mark.servers
@pytest.mark.parametrize("to", KEPT)
@pytest.mark.parametrize("kind", ["psycopg", "asyncmy"])
async def test_what_a_server_takes_is_kept(new: Any, tmp_path: Path, kind: str, to: str) -> None:
    """The server itself refuses an orphan afterwards."""
    source, here = made(tmp_path / "s.db", KEPT[to]), await new(kind)
    assert not (await copy(source, here)).notes
    insert = "INSERT INTO c (id, p, q) VALUES (1, 99, 99)" if "q INT" in KEPT[to] else ""
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await ask(here, insert or "INSERT INTO c (id, p) VALUES (1, 99)")


BY_NAME = (
    "CREATE TABLE t (name TEXT PRIMARY KEY COLLATE NOCASE); INSERT INTO t VALUES ('Ann');"
    "CREATE TABLE c (id INTEGER PRIMARY KEY, p TEXT {} REFERENCES t);"
    "INSERT INTO c VALUES (1, 'ANN');"
)


@pytest.mark.servers
@pytest.mark.parametrize("child", ["", "COLLATE NOCASE"])
async def test_a_reference_in_another_case(new: Any, tmp_path: Path, child: str) -> None:
    """SQLite compares by the collation of the parent, PostgreSQL does not: a check knows it."""
    source = made(tmp_path / "s.db", BY_NAME.format(child))
    assert (await copy(source, f"sqlite:///{tmp_path}/t.db")).rows == 2
    with pytest.raises(CopyError, match=r"c\.p: refers to a row of t that is not there \(1 row\)"):
        await copy(source, await new("psycopg"), check=True)
