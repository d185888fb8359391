"""What SQLAlchemy's asyncio layer costs by itself: the limit of any engine beneath `AsyncSession`.

sqlite3 is called on the event loop, on one connection for all tasks, and a COMMIT does not wait for
the disk (`synchronous=OFF`). It works here because no operation of the benchmark ever gives way
between its first statement and its COMMIT; in an application it would mix up transactions.
"""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import Pool, StaticPool
from sqlalchemy.util import await_only

from .sqlalchemy_async import CorePeer, OrmPeer

registry.register("sqlite.limit", __name__, "LimitDialect")


class _Nothing:
    """SQLAlchemy wants an execution to await something; this is done at once."""

    def __await__(self) -> Any:
        return iter(())


class _Cursor(sqlite3.Cursor):
    server_side = False

    async def _async_soft_close(self) -> None:
        pass


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)


def _connect(*args: Any, **kw: Any) -> sqlite3.Connection:
    connection = sqlite3.connect(*args, factory=_Connection, **kw)
    connection.execute("PRAGMA synchronous=OFF")
    return connection


class LimitDialect(SQLiteDialect_pysqlite):
    """Calls the driver where it is."""

    driver = "limit"
    is_async = True
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        return SimpleNamespace(**{**vars(sqlite3), "connect": _connect})

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        return StaticPool

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        await_only(_Nothing())
        cursor.execute(statement, parameters)


def limit(url: str) -> AsyncEngine:
    return create_async_engine(url.replace("+aiosqlite", "+limit"))


class LimitOrm(OrmPeer):
    name = "limit: SQLAlchemy's asyncio layer"
    make = limit


class LimitCore(CorePeer):
    name = "limit: SQLAlchemy's asyncio layer"
    make = limit
