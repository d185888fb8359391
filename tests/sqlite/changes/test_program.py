"""The tables that SQLite itself says a statement reads and writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qsession.sqlite.changes.program import ROOTS, Written, is_explained, tables_of

SCHEMA = """
PRAGMA foreign_keys=ON;
CREATE TABLE a (id INTEGER PRIMARY KEY, v, u UNIQUE);
CREATE TABLE B (id INTEGER PRIMARY KEY AUTOINCREMENT, a_id REFERENCES a ON DELETE CASCADE);
CREATE TABLE c (id INTEGER PRIMARY KEY, b_id REFERENCES B ON DELETE SET NULL);
CREATE INDEX b_a ON B (a_id);
CREATE TABLE audit (what);
CREATE TABLE audited (id INTEGER PRIMARY KEY);
CREATE TRIGGER t AFTER UPDATE ON audited BEGIN INSERT INTO audit VALUES (new.id); END;
CREATE TABLE chain (id INTEGER PRIMARY KEY);
CREATE TRIGGER u AFTER INSERT ON chain BEGIN UPDATE audited SET id = id; END;
CREATE TABLE bare (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
CREATE VIEW joined AS SELECT a.v FROM a JOIN B ON B.a_id = a.id;
CREATE VIEW writable AS SELECT v FROM a;
CREATE TRIGGER w INSTEAD OF INSERT ON writable BEGIN INSERT INTO c (id) VALUES (new.v); END;
CREATE TEMP TABLE mine (x);
"""


@pytest.fixture
def raw() -> Iterator[sqlite3.Connection]:
    """A connection whose rows and texts are not the usual ones."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(SCHEMA)
        connection.row_factory = lambda cursor, row: {"row": row}
        connection.text_factory = bytes
        yield connection


@pytest.mark.parametrize(
    ("sql", "parameters", "tables"),
    [
        ("INSERT INTO a (v) VALUES (?)", (1,), {"a"}),
        ("insert into main.[A] (v) values (1)", (), {"a"}),
        ("UPDATE a SET v = :v", {"v": 1}, {"a"}),
        ("DELETE FROM audit", (), {"audit"}),
        ("DELETE FROM audit WHERE what IN (SELECT id FROM a)", (), {"audit"}),
        ("DELETE FROM a WHERE id = 1", (), {"a", "b", "c"}),
        ("REPLACE INTO a VALUES (1, 1, 1)", (), {"a", "b", "c"}),
        ("DELETE FROM B", (), {"b", "c"}),
        ("INSERT INTO B (a_id) VALUES (1)", (), {"b", "sqlite_sequence"}),
        ("UPDATE audited SET id = 2", (), {"audited", "audit"}),
        ("INSERT INTO chain DEFAULT VALUES", (), {"chain", "audited", "audit"}),
        ("INSERT INTO bare VALUES (1, 2)", (), {"bare"}),
        ("INSERT INTO writable VALUES (1)", (), {"c"}),
        ("WITH x AS (SELECT id FROM a) INSERT INTO audit SELECT id FROM x", (), {"audit"}),
        ("INSERT INTO audit SELECT what FROM audit", (), {"audit"}),
        ("UPDATE a SET v = 1 RETURNING id", (), {"a"}),
        ("SELECT * FROM a", (), set()),
        ("INSERT INTO mine VALUES (1)", (), set()),
        ("CREATE TABLE d (x)", (), None),
        ("DROP TABLE a", (), None),
        ("PRAGMA user_version=1", (), None),
        ("INSERT INTO gone VALUES (1)", (), "error"),
    ],
)
def test_written(raw: sqlite3.Connection, sql: str, parameters: Any, tables: Any) -> None:
    """Triggers, cascades, views and common table expressions are in the program."""
    if tables == "error":
        with pytest.raises(sqlite3.OperationalError):
            Written().by(raw, {sql: parameters})
        return
    assert Written().by(raw, {sql: parameters}) == tables


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT * FROM a AS x", {"a"}),
        ("SELECT * FROM joined", {"a", "b"}),
        ("SELECT count(*) FROM B", {"b"}),
        ("SELECT a_id FROM B ORDER BY a_id", {"b"}),
        ("SELECT v FROM a WHERE u = 1", {"a"}),
        ("SELECT 1 WHERE EXISTS (SELECT 1 FROM c)", {"c"}),
        ("SELECT v FROM a UNION SELECT what FROM audit", {"a", "audit"}),
        ("WITH x AS (SELECT * FROM c) SELECT * FROM x LEFT JOIN bare ON k = x.b_id", {"c", "bare"}),
        ("VALUES ((SELECT max(id) FROM audited))", {"audited"}),
        ("SELECT 1", set()),
        ("SELECT * FROM mine", set()),
        ("SELECT * FROM sqlite_master", {"sqlite_master"}),
        ("SELECT * FROM pragma_table_info('a')", None),
        ("SELECT * FROM json_each('[1]'), a", None),
    ],
)
def test_read(raw: sqlite3.Connection, sql: str, tables: set[str] | None) -> None:
    """Views, subqueries and indices are in the program; virtual tables are not known."""
    raw.row_factory, raw.text_factory = None, str
    program, roots = raw.execute(f"EXPLAIN {sql}").fetchall(), dict(raw.execute(ROOTS).fetchall())
    assert tables_of(program, roots, writes=False) == tables


def test_full_text_search(raw: sqlite3.Connection) -> None:
    """A virtual table writes to tables that its program does not name."""
    raw.execute("CREATE VIRTUAL TABLE docs USING fts5(x)")
    assert Written().by(raw, {"INSERT INTO docs VALUES ('x')": ()}) is None


def test_another_schema(raw: sqlite3.Connection) -> None:
    """What is remembered of a text holds for one schema only."""
    written, sent = Written(), {"UPDATE a SET v = 1": ()}
    assert written.by(raw, sent) == {"a"}
    raw.execute("CREATE TRIGGER n AFTER UPDATE ON a BEGIN INSERT INTO audit VALUES (1); END")
    assert written.by(raw, sent) == {"a", "audit"}
    raw.execute("BEGIN")
    raw.execute("DROP TRIGGER n")
    assert written.by(raw, sent) == {"a"}
    raw.execute("ROLLBACK")
    assert written.by(raw, sent) == {"a", "audit"}


def test_too_many_new_texts(raw: sqlite3.Connection) -> None:
    """They are not looked at: that would delay the commit."""
    many = {f"INSERT INTO a (v) VALUES ({n})": () for n in range(Written.AT_ONCE + 1)}
    written = Written()
    assert written.by(raw, many) is None
    few = dict(list(many.items())[:-1])
    assert written.by(raw, few) == {"a"}
    assert written.by(raw, many) == {"a"}  # all but one are known


def test_the_memory_is_bounded(raw: sqlite3.Connection) -> None:
    """A program that writes values into its texts does not fill the memory."""
    written = Written()
    for n in range(2 * Written.ROOM):
        written.by(raw, {f"INSERT INTO a (v) VALUES ({n})": ()})
    assert len(written._found) <= Written.ROOM + 1


@pytest.mark.parametrize(
    ("program", "tables"),
    [
        ([(0, "OpenWrite", 0, 99, 0, "", 0, "")], None),
        ([(0, "OpenWrite", 0, 5, 0, "", 0x10, "")], None),
        ([(0, "OpenWrite", 0, 1, 0, "", 0, "")], None),
        ([(0, "OpenWrite", 0, 5, 2, "", 0, "")], set()),
        ([(0, "OpenWrite", 0, 5, 0, "", 0, "")], {"five"}),
    ],
)
def test_unknown_pages(program: list[Any], tables: set[str] | None) -> None:
    """A page that no table is known for, or the schema: anything may change."""
    assert tables_of(program, {5: "five"}, writes=True) == tables


@pytest.mark.parametrize("sql", ["PRAGMA journal_mode=DELETE", "VACUUM", "ALTER TABLE a ADD x", ""])
def test_not_explained(sql: str) -> None:
    """EXPLAIN of a PRAGMA may set it, and of DDL it tells too little."""
    assert not is_explained(sql)


def test_another_program_changes_the_schema(tmp_path: Path) -> None:
    """A program that is listed later is of the new schema, and reads no memory of the old one.

    ``sqlite3`` keeps the prepared EXPLAIN, which SQLite lists without a look at the schema.
    """
    ours = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    theirs = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    with closing(ours), closing(theirs):
        theirs.execute("CREATE TABLE a (x)")
        theirs.execute("CREATE TABLE c (x)")
        written, sent = Written(), {"INSERT INTO a VALUES (1)": ()}
        assert written.by(ours, sent) == {"a"}
        theirs.execute("CREATE TRIGGER t AFTER INSERT ON a BEGIN INSERT INTO c VALUES (1); END")
        assert written.by(ours, sent) == {"a", "c"}
        theirs.execute("DROP TRIGGER t")
        assert written.by(ours, sent) == {"a"}
        for n in range(50):
            theirs.execute(f"CREATE TABLE t{n} ({'x' * (n + 1)})")
            assert written.by(ours, sent) == {"a"}
