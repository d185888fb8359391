"""Databases for the tests of `qsession.copy`: files of SQLite, and new databases on servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, inspect, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

POSTGRESQL = os.environ.get(
    "QSESSION_TEST_POSTGRESQL", "postgresql+asyncpg://postgres@127.0.0.1:5432/postgres"
)
MARIADB = os.environ.get("QSESSION_TEST_MARIADB", "mysql+asyncmy://root@127.0.0.1:3306/mysql")
SERVERS = {
    "asyncpg": POSTGRESQL,
    "psycopg": POSTGRESQL.replace("+asyncpg", "+psycopg"),
    "asyncmy": MARIADB,
}
START = {
    "postgresql": "docker run -e POSTGRES_HOST_AUTH_METHOD=trust -p 5432:5432 postgres",
    "mysql": "docker run -e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1 -p 3306:3306 mariadb",
}
_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def database(kind: str, folder: Path) -> AsyncIterator[str]:
    """The URL of a new database of this kind (a driver, or ``sqlite``), dropped at the end."""
    name = f"qsession_copy_{os.getpid()}_{next(_numbers)}"
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder / name}.db"
        return
    admin = make_url(SERVERS[kind])
    await administer(admin, f"CREATE DATABASE {name}")
    try:
        yield admin.set(database=name).render_as_string(hide_password=False)
    finally:
        force = " WITH (FORCE)" if admin.get_backend_name() == "postgresql" else ""
        await administer(admin, f"DROP DATABASE {name}{force}")


async def administer(admin: URL, statement: str) -> None:
    """Run a statement outside of a transaction; where no server answers, the test is left out."""
    engine = create_async_engine(admin, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(text(statement))
    except (OSError, DBAPIError) as error:
        if not statement.startswith("CREATE") or os.environ.get("QSESSION_REQUIRE_SERVERS") == "1":
            raise
        backend = admin.get_backend_name()
        pytest.skip(f"no {backend} answers ({type(error).__name__}). Start: {START[backend]}")
    finally:
        await engine.dispose()


def made(file: Path, script: str) -> str:
    """A file of SQLite made by plain sqlite3, as another program would; its URL."""
    with closing(sqlite3.connect(file)) as raw:
        raw.executescript(script)
        raw.commit()
    return f"sqlite+aiosqlite:///{file}"


async def ask(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements on a database; the rows of the last one."""
    engine = create_async_engine(url)
    rows: list[tuple[Any, ...]] = []
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
                rows = [tuple(row) for row in result] if result.returns_rows else []
    finally:
        await engine.dispose()
    return rows


async def tables(url: str) -> set[str]:
    """The names of the tables of a database."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))
    finally:
        await engine.dispose()


async def cancelled_at(task: asyncio.Task[Any], reached: asyncio.Event) -> None:
    """Cancel a task when it has got somewhere, and wait for its end."""
    waiting = asyncio.ensure_future(reached.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
