"""One set of tests, four databases: each test here runs on SQLite, PostgreSQL and MariaDB.

QSESSION_TEST_DRIVERS names other drivers, as ``mysql+aiomysql``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_tables import Base, Counter, Database
from server_databases import database_on
from sqlalchemy import insert
from sqlalchemy.engine import URL

from qsession import QueuedAsyncEngine, create_async_engine
from qsession.session.maker import SessionMaker

DRIVERS = "postgresql+asyncpg postgresql+psycopg mysql+asyncmy"
ON_SERVERS = [
    pytest.param(each, marks=pytest.mark.servers)
    for each in os.environ.get("QSESSION_TEST_DRIVERS", DRIVERS).split()
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that uses a database runs on each; those marked ``servers``, on the servers."""
    if "driver" not in metafunc.fixturenames:
        return
    only = metafunc.definition.get_closest_marker("only")
    params = ON_SERVERS
    if only is not None:
        params = [each for each in ON_SERVERS if each.values[0].startswith(only.args[0])]
    elif metafunc.definition.get_closest_marker("servers") is None:
        params = ["sqlite+aiosqlite", *ON_SERVERS]
    metafunc.parametrize("driver", params)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[URL]:
    """A database on PostgreSQL for this run of the tests."""
    with database_on("postgresql") as url:
        yield url


@pytest.fixture(scope="session")
def mysql() -> Iterator[URL]:
    """A database on MariaDB or MySQL for this run of the tests."""
    with database_on("mysql") as url:
        yield url


@pytest.fixture
def url(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the database of this test is."""
    if driver.startswith("sqlite"):
        return f"{driver}:///{tmp_path / 'app.db'}"
    server: URL = request.getfixturevalue(driver.partition("+")[0])
    return server.set(drivername=driver).render_as_string(hide_password=False)


@pytest.fixture
async def database(url: str, driver: str) -> AsyncIterator[Database]:
    """The database with its tables, and two counters at zero. In the end nothing is left open."""
    opened = Database(url, driver)
    async with opened.outside.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Counter), [{"id": 1, "value": 0}, {"id": 2, "value": 0}])
    yield opened
    await opened.close()


@pytest.fixture
def make(database: Database) -> Callable[..., QueuedAsyncEngine]:
    """Makes engines on the database, which are disposed of."""

    def make(**kw: Any) -> QueuedAsyncEngine:
        engine = create_async_engine(database.url, **kw)
        database.engines.append(engine)
        return engine

    return make


@pytest.fixture
def engine(make: Callable[..., QueuedAsyncEngine]) -> QueuedAsyncEngine:
    """One engine as it comes."""
    return make()


@pytest.fixture
def maker(engine: QueuedAsyncEngine) -> SessionMaker:
    """Makes the sessions of that engine, as `qsession` does."""
    return SessionMaker(bind=engine)
