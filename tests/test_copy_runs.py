"""`qsession.copy` beside others, on connections that break, and between names of one database."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from copy_databases import ask, database, made, tables

from qsession import CopyError, copy
from qsession.transfer import loading, reading

SERVERS = ("asyncpg", "psycopg", "asyncmy")
MANY = """
CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO t SELECT i, 'word ' || i FROM n;
CREATE TABLE u (id INTEGER PRIMARY KEY);
INSERT INTO u SELECT id FROM t;
"""


@pytest.fixture
async def new(tmp_path):
    """Makes databases, and drops them."""
    async with AsyncExitStack() as stack:
        yield lambda kind: stack.enter_async_context(database(kind, tmp_path))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Ten rows at a time."""
    monkeypatch.setattr(reading, "BATCH_ROWS", 10)
    monkeypatch.setattr(reading, "_FIRST_ROWS", 10)


async def end_the_others(url):
    """End all other connections to a database, as an administrator does."""
    if url.startswith("postgresql"):
        others = "FROM pg_stat_activity WHERE datname = current_database()"
        await ask(url, f"SELECT pg_terminate_backend(pid) {others} AND pid <> pg_backend_pid()")
        return
    others = "FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    for (number,) in await ask(url, f"SELECT id {others}"):
        await ask(url, f"KILL {number}")


@pytest.fixture
def lose(monkeypatch):
    """Has a copy lose its connections to a database, once, before it writes its sixth batch."""
    write, written = loading.write, []

    def prepare(url):
        async def losing(*arguments):
            written.append(True)
            if len(written) == 6:
                await end_the_others(url)
            await write(*arguments)

        monkeypatch.setattr(loading, "write", losing)

    return prepare


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("resume", [False, True])
async def test_a_connection_that_is_lost(new, tmp_path, lose, kind, resume):
    """What is told is the loss and what is left, not that a ROLLBACK failed afterwards."""
    source, here = made(tmp_path / "s.db", MANY), await new(kind)
    lose(here)
    left = "Go on with --resume" if resume else "The target is as it was$"
    with pytest.raises(CopyError, match=f"the target refused rows of t: .*{left}"):
        await copy(source, here, resume=resume)
    assert await tables(here) == ({"t", "u", "qsession_copy"} if resume else set())
    assert (await copy(source, here, resume=resume, verify=True)).rows == 1000


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_source_that_is_lost(new, tmp_path, lose, kind):
    """The connection that is read from ends in the middle: nothing is kept."""
    there, here = await new(kind), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    await copy(made(tmp_path / "s.db", MANY), there)
    lose(there)
    with pytest.raises(CopyError, match=r"the copy failed: .*The target is as it was"):
        await copy(there, here)
    assert not list(tmp_path.glob("target*"))
