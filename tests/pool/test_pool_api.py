"""create_pool: where its database is, and what it does on SQLite beside the contract."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cancelling import assert_free, eventually
from sqlalchemy.exc import ArgumentError, InvalidRequestError

from qsession import AsyncConnectionPool, NestedWriteError, ReadOnlyError, create_pool

NEW = "INSERT INTO notes (body) VALUES ($1)"
COUNT = "SELECT count(*) FROM notes"


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[AsyncConnectionPool]:
    """A pool on a file with an empty table, which is free again at the end."""
    path = tmp_path / "app.db"
    async with create_pool(f"sqlite:///{path}", max_size=2) as pool:
        await pool.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
        yield pool
    assert_free(path)


def test_url_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """QSESSION_URL, then DATABASE_URL; what is given comes first; without any, it says so."""
    for name in ("QSESSION_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidRequestError, match="QSESSION_URL or DATABASE_URL"):
        create_pool()
    monkeypatch.setenv("DATABASE_URL", "sqlite:///second.db")
    assert create_pool().engine.url.database == "second.db"
    monkeypatch.setenv("QSESSION_URL", "sqlite:///first.db")
    assert AsyncConnectionPool().engine.url.database == "first.db"
    assert create_pool("sqlite:///given.db").engine.url.database == "given.db"


def test_sizes_and_settings() -> None:
    """They go to the engine, which checks them."""
    pool = create_pool("sqlite://", max_size=3, queue_timeout=7)
    assert pool.engine.pool.size() == 3
    assert pool.engine.pool.settings.queue_timeout == 7
    with pytest.raises(ArgumentError, match="min_size=5"):
        create_pool("sqlite://", min_size=5, max_size=3)
    with pytest.raises(ArgumentError, match="durability"):
        create_pool("sqlite://", durability="some")


async def test_a_database_that_cannot_be_reached(tmp_path: Path) -> None:
    """Awaiting the pool says so; making it does not try."""
    pool = create_pool(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}")
    with pytest.raises(Exception, match="unable to open"):
        await pool
    await pool.close()


async def test_a_pool_can_be_used_at_once() -> None:
    """It connects with the first statement; a memory database lives as long as it."""
    pool = create_pool("sqlite://")
    await pool.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
    await asyncio.gather(*(pool.execute(NEW, str(n)) for n in range(30)))
    assert await pool.fetchval(COUNT) == 30
    assert repr(pool).endswith("open, 0 acquired>")
    await pool.close()
    assert repr(pool).endswith("closed, 0 acquired>")


async def test_reads_wait_for_nobody(pool: AsyncConnectionPool) -> None:
    """Beside a transaction that writes they read the last state, texts not seen before too."""
    async with pool.transaction() as writer:
        await writer.execute(NEW, "a")
        assert await pool.fetchval(COUNT) == 0
        assert await pool.fetch("SELECT * FROM notes") == []
        assert pool.engine.stats().acquired == 2


async def test_writes_queue_up(pool: AsyncConnectionPool) -> None:
    """Single statements and transactions wait in one queue, and more connections hold none up."""
    await pool.execute(NEW, "zero")
    async with pool.transaction() as writer:
        await writer.execute(NEW, "first")
        others = [asyncio.create_task(pool.execute(NEW, str(n))) for n in range(20)]
        await eventually(lambda: pool.engine.stats().waiting == 20)
        assert await pool.fetchval(COUNT) == 1
    assert await asyncio.gather(*others) == [1] * 20
    rows = await pool.fetch("SELECT body FROM notes WHERE id > 1 ORDER BY id")
    assert [row.body for row in rows] == ["first", *map(str, range(20))]


async def test_a_task_that_would_wait_for_itself(pool: AsyncConnectionPool) -> None:
    """A write on a second connection, inside of a transaction that has written, is an error."""
    async with pool.transaction() as connection:
        await connection.execute(NEW, "a")
        with pytest.raises(NestedWriteError):
            await pool.execute(NEW, "b")
        await connection.execute(NEW, "c")
    assert await pool.fetch("SELECT body FROM notes") == [("a",), ("c",)]


async def test_single_statements_share_fsyncs(pool: AsyncConnectionPool) -> None:
    """Those that wait for one another are made durable together."""
    await pool.execute(NEW, "a")
    before = pool.engine.stats()
    await asyncio.gather(*(pool.execute(NEW, str(n)) for n in range(200)))
    after = pool.engine.stats()
    assert after.commits - before.commits == 200
    assert after.syncs - before.syncs < 200
    assert await pool.fetchval(COUNT) == 201


async def test_what_may_not_be_in_a_transaction(pool: AsyncConnectionPool) -> None:
    """VACUUM and PRAGMA run, as each statement is by itself."""
    async with pool.acquire() as connection:
        assert await connection.execute("VACUUM") == 0
        await connection.execute("PRAGMA user_version=7")
        assert await connection.fetchval("PRAGMA user_version") == 7


async def test_returning(pool: AsyncConnectionPool) -> None:
    """Rows of a statement that writes come back, and it is committed."""
    assert await pool.fetchval(f"{NEW} RETURNING id", "a") == 1
    assert await pool.execute("UPDATE notes SET body = 'b' RETURNING id") == 1
    assert await pool.fetch("SELECT * FROM notes") == [(1, "b")]


async def test_a_pool_that_only_reads(pool: AsyncConnectionPool) -> None:
    """access="read" goes for statements and for transactions."""
    async with create_pool(pool.engine.url, access="read") as reading:
        assert await reading.fetchval(COUNT) == 0
        with pytest.raises(ReadOnlyError):
            await reading.execute(NEW, "a")
        with pytest.raises(ReadOnlyError):
            async with reading.transaction() as connection:
                await connection.execute(NEW, "a")


def test_a_pool_survives_its_loop(tmp_path: Path) -> None:
    """On SQLite it can be used by one loop after the other."""
    pool = create_pool(f"sqlite:///{tmp_path / 'app.db'}")

    async def use() -> int:
        await pool.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, body TEXT)")
        await asyncio.gather(*(pool.execute(NEW, "a") for _ in range(20)))
        return int(await pool.fetchval(COUNT))

    assert [asyncio.run(use()), asyncio.run(use())] == [20, 40]
    asyncio.run(pool.close())


async def test_close_across_loops(pool: AsyncConnectionPool) -> None:
    """A connection that another thread's loop gives back lets close() go on."""
    acquired, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def elsewhere() -> None:
        async with pool.acquire() as connection:
            await connection.execute(NEW, "a")
            loop.call_soon_threadsafe(acquired.set)
            await asyncio.to_thread(release.wait, 20)

    thread = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
    await acquired.wait()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    assert not closing.done()
    release.set()
    await asyncio.wait_for(closing, 20)
    await thread
