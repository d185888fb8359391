"""Migrations on servers, while another worker is at one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.util import CommandError
from project import Project
from server_databases import database_on
from sqlalchemy import text

from qsession import QSessionError, create_async_engine
from qsession.migrate import patience
from qsession.migrate import servers as migration
from qsession.migrate.migration import upgrade
from qsession.migrate.servers import one_at_a_time

pytestmark = pytest.mark.servers
DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("QSESSION_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Project(tmp_path)


@contextlib.asynccontextmanager
async def lock_held(engine: Any) -> AsyncIterator[None]:
    """Another worker is migrating meanwhile."""
    async with engine.connect() as connection:
        lock = await connection.run_sync(one_at_a_time, 1.0)
        await connection.run_sync(lambda _: lock.__enter__())
        yield
        await connection.run_sync(lambda _: lock.__exit__(None, None, None))


def looked_at(monkeypatch: pytest.MonkeyPatch, times: int) -> asyncio.Event:
    """Set when the lock was asked for so many times in vain."""
    asked, seen = [], asyncio.Event()
    look: Callable[[Any], bool] = migration._lock_now

    def count(connection: Any) -> bool:
        got = look(connection)
        if not got:
            asked.append(got)
            if len(asked) == times:
                seen.set()
        return got

    monkeypatch.setattr(migration, "_lock_now", count)
    return seen


@pytest.mark.parametrize("driver", DRIVERS[:2])
def test_an_index_is_built_concurrently_while_others_wait(
    project: Project, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for all snapshots that are older than it, and those who wait have none."""

    async def build(url: Any) -> None:
        seen = looked_at(monkeypatch, 2)
        engine = create_async_engine(url)
        async with lock_held(engine):
            waiting = asyncio.create_task(upgrade(url=url, config=project.config))
            await seen.wait()
            async with engine.connect() as plain:
                alone = await plain.execution_options(isolation_level="AUTOCOMMIT")
                await alone.execute(text("CREATE TABLE t (v INTEGER)"))
                await alone.execute(text("CREATE INDEX CONCURRENTLY i ON t (v)"))
            assert not waiting.done()
        await waiting
        await engine.dispose()

    project.add("op.execute('CREATE TABLE made (n INTEGER)')")
    with database_on("postgresql") as server:
        asyncio.run(asyncio.wait_for(build(server.set(drivername=driver)), 60))


@pytest.mark.parametrize("driver", DRIVERS)
def test_who_waits_has_no_statement_under_way(
    project: Project, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no limit of the server on statements, or on transactions that idle, ends the wait."""
    shown = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state <> 'idle'",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database()"
        " AND id <> connection_id() AND command <> 'Sleep'",
    }[driver.partition("+")[0]]

    async def look(url: Any) -> None:
        seen, over = looked_at(monkeypatch, 2), asyncio.Event()
        slept = asyncio.Event()

        async def sleep(_: float) -> None:
            if seen.is_set():
                slept.set()
                await over.wait()

        engine = create_async_engine(url)
        async with lock_held(engine):
            with monkeypatch.context() as patched:
                patched.setattr(patience, "_pause", sleep)
                waiting = asyncio.create_task(upgrade(url=url, config=project.config))
                await slept.wait()
                async with engine.connect() as connection:
                    assert await connection.scalar(text(shown)) == 0
                over.set()
                assert not waiting.done()
        await waiting
        await engine.dispose()

    project.add("op.execute('CREATE TABLE made (n INTEGER)')")
    with database_on(driver.partition("+")[0]) as server:
        asyncio.run(asyncio.wait_for(look(server.set(drivername=driver)), 60))


def test_a_backup_of_a_server_is_refused(project: Project) -> None:
    """It would not be made, and nothing would say so."""
    project.add("op.execute('CREATE TABLE made (n INTEGER)')")
    with database_on("postgresql") as server:
        url = server.set(drivername="postgresql+asyncpg")
        with pytest.raises(CommandError, match="backup= works only on SQLite"):
            asyncio.run(upgrade(url=url, config=project.config, backup=project.folder / "b.db"))


def test_a_server_that_cannot_tell(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """GET_LOCK returns NULL: nobody is blamed, and nothing is migrated."""
    monkeypatch.setattr(migration, "_NAME", "NULL")
    project.add("op.execute('CREATE TABLE made (n INTEGER)')")

    async def ask(url: Any) -> None:
        with pytest.raises(QSessionError, match="returned NULL"):
            await upgrade(url=url, config=project.config)
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            assert (await connection.execute(text("SHOW TABLES"))).all() == []
        await engine.dispose()

    with database_on("mysql") as server:
        asyncio.run(ask(server.set(drivername="mysql+asyncmy")))
