"""What a file that is followed does to the programs that write to it, and what is taken down."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from qsession import CopyError, create_engine
from qsession.transfer.following.capture import find, install, remove
from qsession.transfer.following.conflicts import split


@pytest.fixture
def captured(tmp_path):
    """Makes a file with a schema, whose changes are taken down; a plain connection to it."""
    opened = []

    def make(script):
        file = tmp_path / "a.db"
        with closing(sqlite3.connect(file)) as raw:
            raw.executescript(script)
        engine = create_engine(f"sqlite+qsession:///{file}")
        try:
            with engine.begin() as connection:
                install(connection, None)
        finally:
            engine.dispose()
        opened.append(sqlite3.connect(file, isolation_level=None))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def keys(raw, columns="k1"):
    """What was taken down of the first table."""
    return raw.execute(f"SELECT {columns} FROM qsession_follow_1 ORDER BY seq").fetchall()


def test_results_of_the_application(captured):
    """The last rowid, the number of changes and RETURNING are as without triggers."""
    raw = captured("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER UNIQUE)")
    for n in range(50):
        raw.execute("INSERT INTO t VALUES (NULL, ?)", (n,))
    cursor = raw.execute("INSERT INTO t VALUES (7000, 7000)")
    assert cursor.lastrowid == 7000
    assert raw.execute("SELECT last_insert_rowid(), changes()").fetchone() == (7000, 1)
    assert raw.execute("UPDATE t SET n = -n - 1").rowcount == 51
    assert raw.execute("SELECT changes()").fetchone() == (51,)
    assert raw.execute("DELETE FROM t WHERE id > 3 RETURNING id").fetchone() == (4,)
    assert raw.execute("INSERT OR REPLACE INTO t VALUES (2, -1)").rowcount == 1


@pytest.mark.parametrize(
    ("table", "before", "statement", "gone"),
    [
        ("n UNIQUE", "(1, 5)", "INSERT OR REPLACE INTO t VALUES (2, 5)", 1),
        ("n UNIQUE", "(1, 5), (2, 6)", "UPDATE OR REPLACE t SET n = 5 WHERE id = 2", 1),
        ("n UNIQUE ON CONFLICT REPLACE", "(1, 5)", "INSERT INTO t VALUES (2, 5)", 1),
        ("n TEXT COLLATE NOCASE UNIQUE", "(1, 'a')", "REPLACE INTO t VALUES (2, 'A')", 1),
        ("n INTEGER UNIQUE", "(1, 5)", "REPLACE INTO t VALUES (2, '5')", 1),
        ("n TEXT NOT NULL DEFAULT 'x' UNIQUE", "(1, 'x')", "REPLACE INTO t VALUES (2, NULL)", 1),
        ("n, h AS (n / 2) UNIQUE", "(1, 4)", "REPLACE INTO t (id, n) VALUES (2, 5)", 1),
        ("n, CHECK (n > 0)); CREATE UNIQUE INDEX i ON t (abs(n), (n || ',')", "(1, 5)",
         "REPLACE INTO t VALUES (2, 5)", 1),
        ("n); CREATE UNIQUE INDEX i ON t (n) WHERE n > (3 + 1", "(1, 5)",
         "REPLACE INTO t VALUES (2, 5)", 1),
        ("n); CREATE UNIQUE INDEX i ON t (n DESC /* ) */) WHERE t.n IN (5, 6", "(1, 5)",
         "REPLACE INTO t VALUES (2, 5)", 1),
        ("n); CREATE UNIQUE INDEX i ON t (n) WHERE (id > 0", "(1, 5)",
         "REPLACE INTO t (n) VALUES (5)", 1),
        ("n TEXT); CREATE UNIQUE INDEX i ON t (n) WHERE (n < 6", "(1, 5)",
         "REPLACE INTO t VALUES (2, 5)", 1),
        ("n TEXT); CREATE UNIQUE INDEX i ON t (abs(n), (n < 6)", "(1, 5)",
         "REPLACE INTO t VALUES (2, 5)", 1),
        ("n); CREATE UNIQUE INDEX i ON t (n ->> '$.a'", """(1, '{"a": 5}')""",
         """REPLACE INTO t VALUES (2, '{"a": 5, "b": 6}')""", 1),
        ("n NOT NULL DEFAULT 5, h AS (abs(n)) UNIQUE", "(1, 5)",
         "REPLACE INTO t (id, n) VALUES (2, NULL)", 1),
        ("n, m DEFAULT 1, h AS (n || m) UNIQUE", "(1, 5), (2, 6)",
         "UPDATE OR REPLACE t SET n = 5 WHERE id = 2", 1),
    ],
)  # fmt: skip
def test_rows_that_replace_deletes(captured, table, before, statement, gone):
    """No DELETE trigger tells of them, and each kind of uniqueness finds them."""
    raw = captured(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {table});")
    raw.execute(f"INSERT INTO t (id, n) VALUES {before}")
    raw.execute("DELETE FROM qsession_follow_1")
    raw.execute(statement)
    assert raw.execute("SELECT count(*) FROM t WHERE id = ?", (gone,)).fetchone() == (0,)
    assert (gone,) in keys(raw)


def test_a_row_that_is_deleted_in_its_own_update(captured):
    """By a cascade from the row that it replaces. No AFTER trigger runs then."""
    raw = captured(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER REFERENCES t ON DELETE CASCADE);"
        "INSERT INTO t VALUES (1, 2), (2, NULL);"
    )
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute("UPDATE OR REPLACE t SET id = 2 WHERE id = 1")
    assert raw.execute("SELECT * FROM t").fetchall() == []
    assert {(1,), (2,)} <= set(keys(raw))


def test_a_key_whose_default_takes_the_place_of_null(captured):
    """The new key is that of the row, not NULL."""
    raw = captured("CREATE TABLE t (id TEXT NOT NULL DEFAULT 'x' PRIMARY KEY, n)")
    raw.execute("INSERT INTO t VALUES ('a', 1)")
    raw.execute("UPDATE OR REPLACE t SET id = NULL")
    assert {("a",), ("x",)} <= set(keys(raw))


def test_a_key_of_which_its_children_have_another_type(captured):
    """What SQLite makes of it to look for them is not taken for the key."""
    raw = captured(
        """
        CREATE TABLE a (id TEXT PRIMARY KEY);
        CREATE TABLE b (id INTEGER PRIMARY KEY, a INTEGER REFERENCES a
            ON DELETE CASCADE ON UPDATE CASCADE);
        CREATE INDEX i ON b (a);
        INSERT INTO a VALUES ('01'), ('02');
        """
    )
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute("DELETE FROM a WHERE id = '01'")
    raw.execute("UPDATE a SET id = '03'")
    assert {("01",), ("02",), ("03",)} <= set(keys(raw))


def test_nothing_of_what_is_rolled_back(captured):
    """Nor of a statement that fails."""
    raw = captured("CREATE TABLE t (id TEXT PRIMARY KEY, n UNIQUE) WITHOUT ROWID")
    raw.execute("INSERT INTO t VALUES ('a', 1)")
    raw.execute("BEGIN")
    raw.execute("DELETE FROM t")
    raw.execute("ROLLBACK")
    with pytest.raises(sqlite3.IntegrityError):
        raw.execute("INSERT INTO t VALUES ('b', 1)")
    assert keys(raw) == [("a",)]


def test_a_key_that_changes_its_case(captured):
    """Both ways of writing it are taken down, though SQLite takes them for one."""
    raw = captured("CREATE TABLE t (id TEXT COLLATE NOCASE PRIMARY KEY, n)")
    raw.execute("INSERT INTO t VALUES ('a', 1)")
    raw.execute("UPDATE t SET id = 'A'")
    raw.execute("REPLACE INTO t VALUES ('a', 2)")
    assert {("a",), ("A",)} <= set(keys(raw)[1:])


def test_by_cascades_and_triggers(captured):
    """What SQLite or the application does by itself is taken down as well."""
    raw = captured(
        """
        CREATE TABLE children (id INTEGER PRIMARY KEY, p INTEGER REFERENCES parents
            ON DELETE CASCADE);
        CREATE TABLE parents (id INTEGER PRIMARY KEY);
        CREATE TRIGGER birth AFTER INSERT ON parents BEGIN
            INSERT INTO children VALUES (NEW.id * 10, NEW.id); END;
        """
    )
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute("INSERT INTO parents VALUES (1), (2)")
    raw.execute("DELETE FROM parents WHERE id = 2")
    assert keys(raw) == [(10,), (20,), (20,)]


def test_strange_names(tmp_path, captured):
    """Quotes, colons, percents and columns called rowid."""
    raw = captured(
        'CREATE TABLE "a ""b"" :c %s" ("k :""k" TEXT PRIMARY KEY, rowid UNIQUE, "%(x)s" UNIQUE)'
    )
    raw.execute('INSERT INTO "a ""b"" :c %s" VALUES (?, 1, 2)', ("x",))
    raw.execute('REPLACE INTO "a ""b"" :c %s" VALUES (?, 1, 3)', ("y",))
    assert {("x",), ("y",)} <= set(keys(raw))


def test_taken_out_again(tmp_path, captured):
    """All of it, whatever happened to it; twice is once."""
    raw = captured("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    engine = create_engine(f"sqlite+qsession:///{tmp_path / 'a.db'}")
    with engine.begin() as connection:
        found = find(connection)
        assert found is not None
        assert [each.key for each in found.tables] == [("id",)]
    with closing(sqlite3.connect(tmp_path / "a.db")) as other:
        other.execute("DROP TABLE qsession_follow_1")
    with engine.begin() as connection:
        assert find(connection) is None
        assert remove(connection)
    with engine.begin() as connection:
        assert not remove(connection)
    engine.dispose()
    raw.execute("INSERT INTO t VALUES (1)")
    assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]


def test_found_again(tmp_path, captured):
    """Each table with its own changes, also where SQLite sorts names by the bytes of UTF-16."""
    captured(
        "PRAGMA encoding = 'UTF-16le'; CREATE TABLE \u0101 (id INTEGER PRIMARY KEY);"
        "CREATE TABLE b (id INTEGER PRIMARY KEY); CREATE TABLE c (x);"
    )
    engine = create_engine(f"sqlite+qsession:///{tmp_path / 'a.db'}")
    with engine.begin() as connection:
        found = find(connection)
        assert found is not None
        assert {each.table for each in found.tables} == {"\u0101", "b", "c"}
        for each in found.tables:
            query = "SELECT tbl_name FROM sqlite_master WHERE name = ?"
            filled = connection.exec_driver_sql(query, (f"{each.log}_insert",)).scalar()
            assert filled == each.table
    engine.dispose()


def test_an_index_that_only_the_application_reads(captured, tmp_path):
    """It is refused by name, and nothing is put into the file."""
    with closing(sqlite3.connect(tmp_path / "a.db")) as raw:
        raw.create_function("mine", 1, str, deterministic=True)
        raw.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n)")
        raw.execute("CREATE UNIQUE INDEX strange ON t (mine(n))")
    with pytest.raises(CopyError, match="unique index strange of t"):
        captured("")
    with closing(sqlite3.connect(tmp_path / "a.db")) as raw:
        assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (2,)


def test_parts_of_an_index():
    """Terms and condition, whatever commas and parentheses are in them."""
    assert split("CREATE UNIQUE INDEX i ON t(a, lower(b || ',)') DESC) WHERE a > (1)") == (
        ["a", "lower(b || ',)')"],
        "a > (1)",
    )
    assert split('CREATE UNIQUE INDEX "i(" ON "t)" ( -- (x,\n"a,b" ASC )') == (['"a,b"'], "")
    assert split("CREATE UNIQUE INDEX i ON t((a + b))\nWHERE\nb") == (["(a + b)"], "b")
