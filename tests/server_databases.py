"""Databases on running servers, for the tests: where the servers are, and one database a test run.

QSESSION_TEST_POSTGRES and QSESSION_TEST_MARIADB name other servers than those of this machine.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

SERVERS = {
    "postgresql": (
        os.environ.get("QSESSION_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres"),
        "asyncpg",
        "apt-get install postgresql, then let 127.0.0.1 in by 'trust' in pg_hba.conf",
    ),
    "mysql": (
        os.environ.get("QSESSION_TEST_MARIADB", "mysql://root@127.0.0.1:3306/mysql"),
        "asyncmy",
        "apt-get install mariadb-server, then let root@127.0.0.1 in without a password",
    ),
}
"""Of each kind: where it is, the driver to create databases with, and how to come by one."""


def required() -> bool:
    """Whether a server that does not answer is a failure."""
    return os.environ.get("QSESSION_REQUIRE_SERVERS") == "1"


async def _tell(url: URL, statement: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))


@contextmanager
def database_on(kind: str) -> Iterator[URL]:
    """A new database on the server of this kind, dropped afterwards. Its URL names no driver."""
    where, driver, remedy = SERVERS[kind]
    server = make_url(where).set(drivername=f"{kind}+{driver}")
    name = f"qsession_{os.getpid()}_{secrets.token_hex(4)}"
    try:
        asyncio.run(asyncio.wait_for(_tell(server, f"CREATE DATABASE {name}"), 10))
    except Exception as error:
        told = f"no {kind} at {server.host}:{server.port} ({error!r}). To have one: {remedy}"
        if required():
            pytest.fail(told)
        pytest.skip(told)
    try:
        yield server.set(drivername=kind, database=name)
    finally:
        force = " WITH (FORCE)" if kind == "postgresql" else ""
        asyncio.run(asyncio.wait_for(_tell(server, f"DROP DATABASE {name}{force}"), 30))
