"""One set of tests, four databases: each test here runs on SQLite, PostgreSQL and MariaDB.

QSESSION_TEST_DRIVERS names other drivers, as ``mysql+aiomysql``. Behind ``/read_urls`` the database
is also its own replica, and behind ``/pooler`` PgBouncer stands before it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_tables import Base, Counter, Database
from own_pgbouncer import own_pgbouncer
from server_databases import database_on
from sqlalchemy import insert
from sqlalchemy.engine import URL

from qsession import QueuedAsyncEngine, create_async_engine
from qsession.session.maker import SessionMaker

DRIVERS = (
    "postgresql+asyncpg postgresql+psycopg mysql+asyncmy "
    "postgresql+asyncpg/read_urls postgresql+asyncpg/pooler"
)
CHOSEN = "QSESSION_TEST_DRIVERS" in os.environ
WHOLE = {"test_contract_conflicts", "test_contract_loss", "test_contract_pool_api"}
"""Modules that run behind replicas and a pooler as well; the others only if those are chosen."""
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
    if not CHOSEN and metafunc.module.__name__ not in WHOLE:
        params = [each for each in params if "/" not in str(_name_of(each))]
    if metafunc.definition.get_closest_marker("direct") is not None:
        params = [each for each in params if not str(_name_of(each)).endswith("/pooler")]
    metafunc.parametrize("driver", params)


def _name_of(param: Any) -> object:
    return getattr(param, "values", (param,))[0]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[URL]:
    """A database on PostgreSQL for this run of the tests."""
    with database_on("postgresql") as url:
        yield url


@pytest.fixture(scope="session")
def behind_pgbouncer() -> Iterator[URL]:
    """A database of its own, since PgBouncer keeps connections to it open between tests."""
    with database_on("postgresql") as url:
        yield url


@pytest.fixture(scope="session")
def pgbouncer(behind_pgbouncer: URL) -> Iterator[URL]:
    """The same database, through PgBouncer in transaction mode."""
    with own_pgbouncer(behind_pgbouncer, connections=20) as url:
        yield url.update_query_dict({"pooler": "true"})


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
    before = "pgbouncer" if driver.endswith("/pooler") else driver.partition("+")[0]
    server: URL = request.getfixturevalue(before)
    return server.set(drivername=driver.partition("/")[0]).render_as_string(hide_password=False)


@pytest.fixture
async def database(
    url: str, driver: str, request: pytest.FixtureRequest
) -> AsyncIterator[Database]:
    """The database with its tables, and two counters at zero. In the end nothing is left open."""
    outside = url
    if driver.endswith("/pooler"):
        server: URL = request.getfixturevalue("behind_pgbouncer")
        outside = server.set(drivername=driver.partition("/")[0]).render_as_string(False)
    opened = Database(url, driver, outside)
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
        engine = create_async_engine(database.url, **database.reading, **kw)
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
