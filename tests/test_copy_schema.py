"""What becomes of a schema that `qsession.copy` makes: each thing is kept, or said to be lost."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from copy_databases import ask, database, made, tables
from sqlalchemy.exc import IntegrityError

from qsession import CopyError, copy

SERVERS = ("psycopg", "asyncmy")


@pytest.fixture
async def new(tmp_path):
    """Makes databases, and drops them."""
    async with AsyncExitStack() as stack:
        yield lambda kind: stack.enter_async_context(database(kind, tmp_path))


ON_SERVERS = [pytest.param(kind, marks=pytest.mark.servers) for kind in SERVERS]
EVERYWHERE = ["sqlite", *ON_SERVERS]


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_a_view_of_the_same_name(new, tmp_path, kind):
    """It cannot take the rows, so the copy says so, and leaves nothing."""
    here = await new(kind)
    await ask(here, "CREATE TABLE old (id INTEGER)", "CREATE VIEW t AS SELECT id FROM old")
    source = made(
        tmp_path / "s.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1);"
        "CREATE TABLE u (id INTEGER PRIMARY KEY);",
    )
    with pytest.raises(CopyError, match="in the target, t is no table"):
        await copy(source, here)
    assert await tables(here) == {"old"}


async def test_names_that_differ_by_case(new, tmp_path):
    """To SQLite they are the same table: the rows go there, and references are followed."""
    here = await new("sqlite")
    await ask(
        here,
        "CREATE TABLE Users (id INTEGER PRIMARY KEY, boss INTEGER REFERENCES USERS (ID))",
        "CREATE TABLE posts (author INTEGER REFERENCES uSERS (Id))",
    )
    script = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, boss INTEGER);
    CREATE TABLE Posts (author INTEGER);
    INSERT INTO users VALUES (1, 1), (2, 1);
    INSERT INTO Posts VALUES (2), (3);
    """
    source = made(tmp_path / "s.db", script)
    with pytest.raises(CopyError, match="refers to a row of users that is not there"):
        await copy(source, here)
    await ask(source, "DELETE FROM Posts WHERE author = 3")
    report = await copy(source, here, verify=True)
    assert {each.name: each.rows for each in report.tables} == {"users": 2, "Posts": 1}
    assert await ask(here, "SELECT * FROM users, posts WHERE id = author") == [(2, 1, 2)]
    assert await tables(here) == {"Users", "posts"}


@pytest.mark.servers
async def test_two_tables_that_would_be_one(new):
    """PostgreSQL tells them apart, SQLite does not."""
    there, here = await new("psycopg"), await new("sqlite")
    await ask(there, 'CREATE TABLE "Users" (id integer)', "CREATE TABLE users (id integer)")
    await ask(here, "CREATE TABLE users (id integer)")
    with pytest.raises(CopyError, match="Users and users are one table in the target"):
        await copy(there, here)


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_references_in_another_case(new, tmp_path, kind):
    """SQLite takes ``REFERENCES Users (ID)`` for a reference to users, so the copy does."""
    script = """
    CREATE TABLE users (id INTEGER PRIMARY KEY);
    CREATE TABLE posts (id INTEGER PRIMARY KEY, author INTEGER REFERENCES Users (ID));
    INSERT INTO users VALUES (1);
    INSERT INTO posts VALUES (1, 1), (2, 7);
    """
    source = made(tmp_path / "s.db", script)
    here = await new(kind)
    with pytest.raises(CopyError, match="refers to a row of users that is not there"):
        await copy(source, here)
    await ask(source, "DELETE FROM posts WHERE id = 2")
    assert (await copy(source, here, verify=True)).rows == 2


UNIQUE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, a VARCHAR(254) NOT NULL UNIQUE, b NUMERIC(10,2) UNIQUE,
                c TEXT DEFAULT '' UNIQUE, d UNIQUE, e VARCHAR(9) COLLATE NOCASE,
                f INTEGER, g INTEGER, UNIQUE (e COLLATE NOCASE), UNIQUE (f, g));
CREATE INDEX low ON t (lower(a));
CREATE UNIQUE INDEX some ON t (f) WHERE f > 5;
INSERT INTO t VALUES (1, 'a', 1.5, 'c', 'd', 'e', 1, 1);
"""
AGAIN = {"a": "'a'", "b": "1.5", "c": "'c'", "d": "'d'", "e": "'e'", "f, g": "1, 1"}


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_what_is_unique(new, tmp_path, kind):
    """Whichever way it was written; indexes of expressions and collations are named, or kept."""
    here = await new(kind)
    report = await copy(made(tmp_path / "s.db", UNIQUE), here, verify=True)
    for columns, values in AGAIN.items():
        filled = ("", "") if columns == "a" else (", a", ", 'other'")
        with pytest.raises(IntegrityError):
            await ask(
                here, f"INSERT INTO t (id, {columns}{filled[0]}) VALUES (2, {values}{filled[1]})"
            )
    if kind != "sqlite":
        assert set(report.notes) == {
            "t: left out COLLATE NOCASE",
            "t: left out the index low, of an expression",
            "t: left out the partial index some",
        }


ODD = """
CREATE TABLE "odd ones" (id INTEGER PRIMARY KEY AUTOINCREMENT, word TEXT COLLATE NOCASE UNIQUE,
    any, twice AS (id * 2), CHECK (id < 1000)) /* a comment */;
CREATE TABLE strict (x ANY) STRICT;
CREATE TABLE keys (a TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX low ON "odd ones" (lower(word)) WHERE id > 0;
INSERT INTO "odd ones" (word, any) VALUES ('a', 5), ('b', x'00');
INSERT INTO strict VALUES ('1'), (1);
INSERT INTO keys VALUES ('k');
"""


async def test_from_file_to_file_the_schema_is_the_same(new, tmp_path):
    """To the letter, with all that SQLAlchemy does not know of."""
    source, here = made(tmp_path / "s.db", ODD), await new("sqlite")
    report = await copy(source, here, verify=True)
    assert (report.rows, report.notes) == (5, ())
    for query in (
        "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2",
        'SELECT *, typeof("any") FROM "odd ones"',
        "SELECT x, typeof(x) FROM strict ORDER BY rowid",
    ):
        assert await ask(here, query) == await ask(source, query)
    again = await copy(source, here, replace=True, verify=True)
    assert again.rows == 5


PARTS = (
    "CREATE TABLE measures (day date NOT NULL, value integer) PARTITION BY RANGE (day)",
    (
        "CREATE TABLE measures_2023 PARTITION OF measures FOR VALUES "
        "FROM ('2023-01-01') TO ('2024-01-01') PARTITION BY RANGE (day)"
    ),
    "CREATE TABLE measures_2023_all PARTITION OF measures_2023 DEFAULT",
    "CREATE TABLE measures_rest PARTITION OF measures DEFAULT",
    "INSERT INTO measures VALUES ('2023-05-05', 1), ('2024-05-05', 2)",
    "CREATE TABLE animals (id integer PRIMARY KEY, friend integer REFERENCES animals)",
    "CREATE TABLE cats (lives integer) INHERITS (animals)",
    "INSERT INTO animals VALUES (1, 1)",
    "INSERT INTO cats VALUES (2, 1, 9), (3, 3, 9)",
)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg", "psycopg", "asyncmy"])
async def test_partitions_and_tables_that_inherit(new, kind):
    """Each row once: those of a partition in its table, and those that inherit in their own."""
    there, here = await new("asyncpg"), await new(kind)
    await ask(there, *PARTS)
    report = await copy(there, here, verify=True)
    rows = {each.name: each.rows for each in report.tables}
    assert rows == {"measures": 2, "animals": 1, "cats": 2}
    assert await ask(here, "SELECT count(*) FROM measures") == [(2,)]
    assert await ask(here, "SELECT id FROM animals") == [(1,)]
    assert set(report.notes) == {
        "measures: left out its partitions; their rows are copied as its own",
        "cats: left out that it inherits from animals",
    }


@pytest.mark.servers
async def test_a_target_with_partitions_and_tables_that_inherit(new):
    """Rows find their partition, and the verification reads each once."""
    there, here = await new("psycopg"), await new("asyncpg")
    await ask(there, *PARTS)
    await ask(here, *(each for each in PARTS if each.startswith("CREATE")))
    await copy(there, here, verify=True)
    for table, count in (("measures_2023_all", 1), ("ONLY animals", 1), ("cats", 2)):
        assert await ask(here, f"SELECT count(*) FROM {table}") == [(count,)]
