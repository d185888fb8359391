"""create_async_engine and QueuedAsyncEngine: the drop-in for SQLAlchemy's own."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as _create_async_engine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from .config import NAMES, Settings
from .sqlite.pool import WriteQueuePool
from .stats import Stats


class QueuedAsyncConnection(AsyncConnection):
    """An :class:`AsyncConnection` that can wait for the driver's connection."""

    async def get_raw_connection(self) -> PoolProxiedConnection:
        """The pooled connection, holding the write ticket: its ``driver_connection`` is the writer.

        The ticket is given back when this connection ends its transaction, or is closed. What the
        driver's connection has not committed by then is rolled back or committed with it. Raises
        :class:`QueueTimeout`.
        """
        raw = await super().get_raw_connection()
        if isinstance(self.sync_engine.pool, WriteQueuePool):
            await greenlet_spawn(getattr, raw, "driver_connection")
        return raw


class QueuedAsyncEngine(AsyncEngine):
    """An :class:`AsyncEngine` whose SQLite writes wait in a fair queue."""

    _connection_cls = QueuedAsyncConnection

    def stats(self) -> Stats:
        """The write queue at this moment, and the counters since the engine was made."""
        pool = self.sync_engine.pool
        if not isinstance(pool, WriteQueuePool):
            raise InvalidRequestError(f"{self.url.drivername} has no write queue of ours")
        return pool.stats()

    async def raw_connection(self) -> PoolProxiedConnection:
        """A connection of the pool, holding the write ticket until it is committed, rolled back
        or closed. Raises :class:`QueueTimeout`.
        """
        raw = await super().raw_connection()
        if isinstance(self.pool, WriteQueuePool):
            await greenlet_spawn(getattr, raw, "driver_connection")
        return raw

    def execution_options(self, **opt: Any) -> QueuedAsyncEngine:
        return QueuedAsyncEngine(self.sync_engine.execution_options(**opt))


def create_async_engine(url: str | URL, **kw: Any) -> QueuedAsyncEngine:
    """SQLAlchemy's ``create_async_engine`` with the settings of :class:`Settings` as keywords more.

    ``sqlite+aiosqlite://`` (and ``sqlite://``) becomes ``sqlite+qsession://``; any other URL is
    passed through. Raises :class:`sqlalchemy.exc.ArgumentError` for a setting that is not allowed.
    """
    url = make_url(url)
    if url.drivername in ("sqlite", "sqlite+aiosqlite"):
        url = url.set(drivername="sqlite+qsession")
    if url.drivername != "sqlite+qsession":
        Settings().with_options({name: kw.pop(name) for name in NAMES if name in kw})
    return QueuedAsyncEngine(_create_async_engine(url, **kw).sync_engine)
