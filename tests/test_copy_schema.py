"""What becomes of a schema that `qsession.copy` makes: each thing is kept, or said to be lost."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from copy_databases import ask, database, made, tables

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
