"""A copy that is cancelled at any of its suspensions, or runs out of disk, leaves nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
from copy_databases import ask, database, made, tables

from qsession import copy
from qsession.testing import When, cancel_at
from qsession.transfer import reading
from qsession.transfer.schema import BOOKS

SCRIPT = """
CREATE TABLE parents (id INTEGER PRIMARY KEY, up INTEGER REFERENCES parents);
CREATE TABLE children (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parents);
INSERT INTO parents VALUES (1, 2), (2, 1), (3, NULL), (4, 1);
INSERT INTO children VALUES (1, 1), (2, 1), (3, 4);
"""
COUNT = "SELECT (SELECT count(*) FROM parents) + (SELECT count(*) FROM children)"

# Cancelled while it opens a connection or a cursor, SQLAlchemy 2.0 drops it without closing it.
left_by_sqlalchemy = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning",
    "ignore:.*was deleted while still open:ResourceWarning",
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Two rows at a time."""
    monkeypatch.setattr(reading, "BATCH_ROWS", 2)
    monkeypatch.setattr(reading, "_FIRST_ROWS", 2)


@pytest.fixture
async def new(tmp_path):
    """Makes a database with a table of somebody else, and drops it."""
    async with AsyncExitStack() as stack:

        async def make(kind):
            url = await stack.enter_async_context(database(kind, tmp_path))
            await ask(url, "CREATE TABLE mine (x integer)", "INSERT INTO mine VALUES (1)")
            return url

        yield make


async def look(url):
    """What is there: nothing of a copy, or all of it."""
    found = await tables(url)
    assert await ask(url, "SELECT x FROM mine") == [(1,)]
    if found == {"mine"}:
        return "nothing"
    assert found == {"mine", "parents", "children"}
    assert await ask(url, COUNT) == [(7,)]
    return "everything"


async def sweep(source, target, when, step):
    """Cancel at every ``step``-th suspension, until the copy is through before that."""
    at = 1
    while True:
        ended = await cancel_at(copy(source, target, verify=True), at, when)
        found = await look(target)
        if ended:
            assert found == "everything"
            return at
        if found == "everything":  # it came too late, in the last COMMIT or behind it
            await ask(target, "DELETE FROM children", "UPDATE parents SET up = NULL")
            await ask(target, "DROP TABLE children", "DROP TABLE parents")
        at += step


@pytest.mark.parametrize("when", [When.ASKED, When.ANSWERED, When.TWICE])
async def test_into_a_file(new, tmp_path, when):
    """At every third suspension."""
    source = made(tmp_path / "source.db", SCRIPT)
    assert await sweep(source, await new("sqlite"), when, 3) > 30


@left_by_sqlalchemy
@pytest.mark.servers
@pytest.mark.parametrize("when", [When.ASKED, When.ANSWERED])
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "asyncmy"])
async def test_into_a_server(new, tmp_path, kind, when):
    """At every eleventh suspension; on MariaDB, where tables are there for good, at every third."""
    source = made(tmp_path / "source.db", SCRIPT)
    assert await sweep(source, await new(kind), when, 3 if kind == "asyncmy" else 11) > 30


@left_by_sqlalchemy
@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg", "psycopg", "asyncmy"])
async def test_resumed_wherever_it_was_cancelled(new, tmp_path, kind):
    """One copy, cancelled again and again, each time a little later, ends complete."""
    source = made(tmp_path / "source.db", SCRIPT)
    target = await new(kind)
    at = 5
    while not await cancel_at(copy(source, target, resume=True, verify=True), at, When.ASKED):
        if await tables(target) >= {"parents"} and BOOKS not in await tables(target):
            break  # cancelled behind the last COMMIT
        at += 13
    assert await look(target) == "everything"


LIMITED = """
import asyncio, resource, signal, sys
from qsession import CopyError, copy

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    asyncio.run(copy(*sys.argv[1:]))
except CopyError as error:
    print(error)
"""


async def test_a_full_disk(tmp_path):
    """The error says what is wrong, and the file that was begun is gone."""
    script = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
    INSERT INTO t SELECT i, zeroblob(9000) FROM n;
    """
    source = made(tmp_path / "source.db", script)
    target = f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LIMITED, source, target],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "The target is as it was" in done.stdout
    assert "disk" in done.stdout
    assert not list(tmp_path.glob("target*"))
