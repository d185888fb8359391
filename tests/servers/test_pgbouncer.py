"""PgBouncer in transaction mode: each transaction may get another connection to the server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_pgbouncer import own_pgbouncer
from project import Project
from server_databases import database_on
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from qsession import QueueTimeout, copy, create_async_engine, create_engine, create_pool, upgrade
from qsession.migrate import migration
from qsession.session.maker import SessionMaker

pytestmark = pytest.mark.servers
drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
WHO = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[URL, URL]]:
    """A database, by its server and by PgBouncer."""
    with database_on("postgresql") as server, own_pgbouncer(server) as pooler:
        yield server, pooler


def through(places: tuple[URL, URL], driver: str, **query: str) -> URL:
    """The URL with PgBouncer."""
    return places[1].set(drivername=f"postgresql+{driver}").update_query_dict(query)


async def in_turn(url: URL, **kw: object) -> set[int]:
    """The same statements in many transactions; which processes of the server have run them."""
    seen = set()
    async with create_pool(url, max_size=4, **kw) as pool:

        async def work(number: int) -> None:
            for _ in range(10):
                seen.add(await pool.fetchval(WHO))
                assert await pool.fetchval("SELECT CAST($1 AS int)", number) == number
                async with pool.transaction() as connection:
                    seen.add(await connection.fetchval(WHO))
                    assert await connection.fetchval("SELECT CAST($1 AS int)", number) == number

        await asyncio.gather(*(work(number) for number in range(4)))
    return seen


@drivers
async def test_with_pooler_all_statements_work(places: tuple[URL, URL], driver: str) -> None:
    """In transactions and outside, by keyword or in the URL, on several connections."""
    assert len(await in_turn(through(places, driver), pooler=True)) > 1
    assert len(await in_turn(through(places, driver, pooler="true"))) > 1


async def test_each_name_of_a_driver_counts(places: tuple[URL, URL]) -> None:
    """SQLAlchemy has two for psycopg."""
    assert len(await in_turn(through(places, "psycopg_async", pooler="true"))) > 1


@drivers
async def test_without_it_the_error_says_what_to_set(places: tuple[URL, URL], driver: str) -> None:
    """The server does not know the statement, or knows it already."""
    with pytest.raises(DBAPIError, match="pass pooler=True to create_async_engine"):
        await in_turn(through(places, driver))


@drivers
async def test_sessions_and_streams(places: tuple[URL, URL], driver: str) -> None:
    """A stream goes on behind another statement of its transaction."""
    engine = create_async_engine(through(places, driver), pooler=True)
    maker = SessionMaker(bind=engine)
    async with maker.begin() as s:
        await s.execute(text("DROP TABLE IF EXISTS notes"))
        await s.execute(text("CREATE TABLE notes (id int, body json)"))
        await s.execute(
            text("INSERT INTO notes VALUES (:id, '{}')"), [{"id": number} for number in range(500)]
        )
    async with maker.reader() as s:
        rows = await s.stream(text("SELECT id, body FROM notes ORDER BY id"))
        found = [row.id async for row in rows if await s.scalar(text("SELECT 1"))]
    assert found == list(range(500))
    await engine.dispose()


def test_the_synchronous_engine(places: tuple[URL, URL]) -> None:
    """It takes the setting as well."""
    engine = create_engine(through(places, "psycopg"), pooler=True)
    for _ in range(20):
        with engine.connect() as one, engine.connect() as other:
            assert one.scalar(text(WHO)) != other.scalar(text(WHO))
    engine.dispose()


@drivers
async def test_a_copy(places: tuple[URL, URL], driver: str, tmp_path: Path) -> None:
    """With the setting in the URL."""
    source = f"sqlite:///{tmp_path / 'app.db'}"
    async with create_pool(source) as pool:
        await pool.execute("CREATE TABLE copied (id INTEGER PRIMARY KEY, name TEXT)")
        await pool.executemany("INSERT INTO copied VALUES ($1, $2)", [(1, "a"), (2, "b")])
    target = through(places, driver, pooler="true")
    async with create_pool(target) as pool:
        await pool.execute("DROP TABLE IF EXISTS copied")
        await copy(source, target, verify=True)
        assert await pool.fetchval("SELECT count(*) FROM copied") == 2


@drivers
async def test_workers_migrate_in_turn(
    places: tuple[URL, URL], driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is kept over all transactions of the run, and nothing of it stays."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    project = Project(tmp_path)
    project.add('op.execute("CREATE TABLE made (id INTEGER)")')
    project.add(
        """with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY made_id ON made (id)")"""
    )
    url = through(places, driver, pooler="true")
    assert len(await in_turn(url)) > 1  # so each transaction of the run gets another connection
    async with create_pool(url) as pool:
        await pool.execute("DROP TABLE IF EXISTS made, alembic_version")
        await asyncio.gather(*(upgrade(url=url, config=project.config) for _ in range(2)))
        assert await pool.fetchval("SELECT version_num FROM alembic_version") == "0002"
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert await pool.fetchval(locks) == 0


@drivers
async def test_another_worker_is_waited_for(
    places: tuple[URL, URL], driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has come to the server directly as well; too long is an error."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(migration, "WAIT", 0.1)
    project = Project(tmp_path)
    project.add('op.execute("CREATE TABLE never (id INTEGER)")')
    url = through(places, driver, pooler="true")
    direct = create_async_engine(places[0].set(drivername=f"postgresql+{driver}"))
    async with direct.connect() as other:
        await other.execute(text(f"SELECT pg_advisory_lock({migration.servers._KEY})"))
        with pytest.raises(QueueTimeout, match="has been migrating"):
            await upgrade(url=url, config=project.config)
        assert await other.scalar(text("SELECT to_regclass('never')")) is None
    await direct.dispose()
