"""Every way in, and the settings that go with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines import Make, notes, settings, works
from sqlalchemy import literal, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_engine_from_config
from sqlalchemy.ext.asyncio import create_async_engine as stock_engine
from sqlalchemy.pool import NullPool

from qsession import QueuedAsyncEngine, create_async_engine
from qsession.servers.pool import ServerPool


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite", "sqlite+qsession"])
async def test_one_import(tmp_path: Path, scheme: str) -> None:
    """Our create_async_engine takes a text or a URL object, with any of SQLite's names."""
    for url in (f"{scheme}:///{tmp_path}/a.db", make_url(f"{scheme}:///{tmp_path}/a.db")):
        engine = create_async_engine(url)
        assert isinstance(engine, QueuedAsyncEngine)
        assert engine.url.drivername == "sqlite+qsession"
        assert engine.dialect.name == "sqlite"
        assert engine.dialect.is_async
        await works(engine)
        await engine.dispose()


async def test_the_url_alone(make: Make) -> None:
    """SQLAlchemy's own create_async_engine, given our URL, works the same."""
    await works(make(by=stock_engine))


async def test_engine_from_config(tmp_path: Path) -> None:
    """Settings may come as texts from a configuration file, ours among them."""
    engine = async_engine_from_config(
        {
            "db.url": f"sqlite+qsession:///{tmp_path}/a.db",
            "db.echo": "false",
            "db.pool_size": "3",
            "db.max_overflow": "0",
            "db.pool_pre_ping": "true",
            "db.queue_timeout": "7.5",
            "db.max_waiting": "9",
            "db.access": "write",
        },
        prefix="db.",
    )
    assert engine.pool.size() == 3  # type: ignore[attr-defined]
    found = settings(engine)
    assert (found.queue_timeout, found.max_waiting, found.access) == (7.5, 9, "write")
    await works(engine)
    await engine.dispose()


async def test_settings_as_keywords_and_in_the_url(make: Make) -> None:
    """Keywords and query parameters are the same settings; a keyword has the last word."""
    engine = make("?queue_timeout=4&access=read&max_hold=none", max_waiting=5, access="auto")
    found = settings(engine)
    assert (found.queue_timeout, found.max_waiting, found.access) == (4, 5, "auto")
    assert found.max_hold is None
    await works(engine)


@pytest.mark.parametrize(
    ("keywords", "query"),
    [({"access": "often"}, ""), ({}, "?access=often")],
    ids=["keyword", "query"],
)
def test_settings_are_checked_at_creation(
    tmp_path: Path, keywords: dict[str, Any], query: str
) -> None:
    """A value that is not allowed is an error before anything is opened, and names everything."""
    for create, driver in ((create_async_engine, "aiosqlite"), (stock_engine, "qsession")):
        with pytest.raises(ArgumentError, match=r"access='often' is not allowed: one of 'read'"):
            create(f"sqlite+{driver}:///{tmp_path}/a.db{query}", **keywords)
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_is_not_for_asyncio_is_refused(tmp_path: Path) -> None:
    """As SQLAlchemy refuses it, not as a pool that does not fit."""
    with pytest.raises(InvalidRequestError, match="requires an async driver"):
        create_async_engine(f"sqlite+pysqlite:///{tmp_path / 'a.db'}")


def test_an_unknown_keyword_is_refused(tmp_path: Path) -> None:
    """A keyword that nobody knows is SQLAlchemy's usual error."""
    with pytest.raises(TypeError, match=r"Invalid argument\(s\) 'nonsense'"):
        create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db", nonsense=1)


async def test_timeout_of_connect_args_is_the_queue_timeout(make: Make) -> None:
    """What applications pass as SQLite's busy timeout is how long writers wait here."""
    for query, keywords, expected in (
        ("", {"connect_args": {"timeout": 3}}, 3),
        ("?timeout=4", {}, 4),
        ("", {"connect_args": {"timeout": 3}, "queue_timeout": 8}, 8),
        ("", {}, 30),
    ):
        engine = make(query, **keywords)
        await works(engine)
        assert settings(engine).queue_timeout == expected


async def test_connect_args_that_applications_pass(make: Make) -> None:
    """Arguments of sqlite3.connect keep their meaning, but for those that begin transactions."""
    engine = make(
        connect_args={
            "check_same_thread": False,
            "isolation_level": "IMMEDIATE",
            "cached_statements": 10,
            "detect_types": 0,
        }
    )
    await works(engine)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(notes.insert(), {"id": 2})
    async with engine.connect() as connection:
        assert len((await connection.execute(select(notes.c.id))).all()) == 2


def test_a_server_gets_its_own_pool() -> None:
    """Any other URL makes an engine on a pool for servers; settings of ours are checked."""
    url, driver = "postgresql+asyncpg://u:p@nowhere/db", SimpleNamespace(paramstyle="format")
    engine = create_async_engine(url + "?min_size=1", module=driver, queue_timeout=3, pool_size=2)
    assert isinstance(engine.pool, ServerPool)
    assert str(engine.url) == "postgresql+asyncpg://u:***@nowhere/db"
    assert (engine.pool.size(), engine.pool.timeout(), engine.pool.settings.min_size) == (2, 3, 1)
    assert engine.stats().size == 0
    with pytest.raises(ArgumentError, match="queue_timeout='x' is not allowed"):
        create_async_engine(url, module=driver, queue_timeout="x")


def test_a_pool_of_the_callers_own_is_kept() -> None:
    """With another poolclass there is nothing to count or to wait for, and stats() says so."""
    url, driver = "postgresql+asyncpg://u:p@nowhere/db", SimpleNamespace(paramstyle="format")
    engine = create_async_engine(url, module=driver, queue_timeout=3, poolclass=NullPool)
    assert isinstance(engine.pool, NullPool)
    with pytest.raises(InvalidRequestError, match=r"postgresql\+asyncpg has no write queue"):
        engine.stats()


def test_max_size_is_pool_size_without_overflow(tmp_path: Path) -> None:
    """max_size says the same on SQLite and on a server, and not beside pool_size."""
    driver = SimpleNamespace(paramstyle="format")
    for url, kw in (
        (f"sqlite+aiosqlite:///{tmp_path}/a.db", {}),
        ("postgresql+asyncpg://u:p@nowhere/db", {"module": driver}),
    ):
        for engine in (
            create_async_engine(url, max_size=3, min_size=2, **kw),
            create_async_engine(url + "?max_size=3&min_size=2", **kw),
        ):
            pool: Any = engine.pool
            assert (pool.size(), pool._max_overflow) == (3, 0)
            assert dict(engine.url.query) == {}
        with pytest.raises(ArgumentError, match="not both"):
            create_async_engine(url, max_size=3, pool_size=3, **kw)
        with pytest.raises(ArgumentError, match=r"min_size=4 is not allowed: .*max_size=3"):
            create_async_engine(url, max_size=3, min_size=4, **kw)
    with pytest.raises(ArgumentError, match=r"min_size=6 is not allowed: .*pool_size=5"):
        create_async_engine("postgresql+asyncpg://u:p@nowhere/db", module=driver, min_size=6)
    with pytest.raises(
        ArgumentError, match=r"max_size is a setting of qsession\.create_async_engine"
    ):
        stock_engine(f"sqlite+qsession:///{tmp_path}/a.db?max_size=3")


async def test_execution_options_of_an_engine(make: Make) -> None:
    """An engine with options shares pool and queue with the one it was made from."""
    engine = make()
    await works(engine)
    mapped = engine.execution_options(schema_translate_map={None: "main"}, mark=2)
    assert isinstance(mapped, QueuedAsyncEngine)
    assert mapped.stats().acquired == engine.stats().acquired
    async with AsyncSession(mapped) as session:
        assert await session.scalar(select(notes.c.id)) == 1


async def test_values_come_back_as_from_the_stock_driver(make: Make, tmp_path: Path) -> None:
    """Every kind of value that SQLite knows is returned as it was given."""
    engine, stock = make(), stock_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    values = [None, 1, 2**40, 1.5, "text", b"bytes", True]
    seen = []
    for each in (engine, stock):
        async with each.connect() as connection:
            result = await connection.execute(select(*(literal(value) for value in values)))
            seen.append(tuple(result.one()))
    assert seen[0] == seen[1]
    await stock.dispose()


async def test_a_cache_is_not_shared(tmp_path: Path) -> None:
    """With a shared cache, a reader and the writer of one process would lock each other out."""
    engine = create_async_engine(f"sqlite+aiosqlite:///file:{tmp_path}/a.db?cache=shared&uri=true")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    reading = engine.execution_options(qsession_access="read")
    async with reading.connect() as reader:
        assert await reader.scalar(text("SELECT count(*) FROM t")) == 0
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO t VALUES (1)"))
            async with reading.connect() as other:
                assert await other.scalar(text("SELECT count(*) FROM t")) == 0
    await engine.dispose()
