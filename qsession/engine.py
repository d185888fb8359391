"""create_async_engine and QueuedAsyncEngine: the drop-in for SQLAlchemy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.dialects import registry
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as _create_async_engine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from qsession.servers.creation import create_server_engine, pool_size, take_settings
from qsession.servers.pool import ServerPool
from qsession.stats import Stats

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

    from qsession.sqlite.pool import WriteQueuePool

# The entry point says the same; this serves a copy of the package that was never installed. The
# dialect, and what it needs, is imported with the first engine.
registry.register("sqlite.qsession", "qsession.sqlite.dialect", "QSessionDialect")


def _is_queued(dialect: Dialect) -> bool:
    return dialect.driver == "qsession"


def is_ours(engine: AsyncEngine) -> bool:
    """Whether :func:`create_async_engine` has made it, or its URL is ``sqlite+qsession://``."""
    return isinstance(engine, QueuedAsyncEngine) or _is_queued(engine.dialect)


class QueuedAsyncConnection(AsyncConnection):
    """An :class:`AsyncConnection` that can wait for the driver's connection."""

    async def get_raw_connection(self) -> PoolProxiedConnection:
        """The pooled connection, holding the write ticket: its ``driver_connection`` is the writer.

        The ticket is given back when this connection ends its transaction, or is closed. What the
        driver's connection has not committed by then is rolled back or committed with it. Raises
        :class:`QueueTimeout`.
        """
        raw = await super().get_raw_connection()
        if _is_queued(self.sync_engine.dialect):
            await greenlet_spawn(getattr, raw, "driver_connection")
        return raw

    @classmethod
    def _regenerate_proxy_for_target(
        cls, target: Connection, **_additional_kw: Any
    ) -> QueuedAsyncConnection:
        """As in SQLAlchemy, which names its own class there."""
        return cls(AsyncEngine._retrieve_proxy_for_target(target.engine), target)


class QueuedAsyncEngine(AsyncEngine):
    """An :class:`AsyncEngine` whose SQLite writes wait in a fair queue."""

    _connection_cls = QueuedAsyncConnection

    def stats(self) -> Stats:
        """The write queue at this moment, and the counters since the engine was made.

        On a server it is the line for the connections of the pool.
        """
        if isinstance(self.pool, ServerPool):
            return self.pool.stats()
        return self._queued_pool("to look at").stats()

    async def fill(self) -> None:
        """Open ``min_size`` connections now, and at least one, rather than with the first use.

        Raises what opening a connection raises. Cancelled, it keeps those it has opened.
        """
        async with self.connect():
            pass
        if isinstance(self.pool, ServerPool):
            await self.pool.fill()

    def _queued_pool(self, purpose: str) -> WriteQueuePool:
        if not _is_queued(self.dialect):
            raise InvalidRequestError(f"{self.url.drivername} has no write queue of ours {purpose}")
        return cast("WriteQueuePool", self.pool)

    async def drain(self, timeout: float | None = None) -> None:
        """Take no new transactions and wait for those at work, the queue included, to end.

        From then on a transaction that begins raises :class:`EngineDraining`, until ``dispose()``.
        After ``timeout`` seconds (``None``: however long it takes) it raises
        :class:`QueueTimeout`, which names who holds the ticket. Cancelled, or out of time, the
        engine stays closed to new transactions; those at work go on.
        """
        await self._queued_pool("to drain").drain(timeout)

    async def raw_connection(self) -> PoolProxiedConnection:
        """A connection of the pool, holding the write ticket until it is committed, rolled back
        or closed. Raises :class:`QueueTimeout`.
        """
        raw = await super().raw_connection()
        if _is_queued(self.dialect):
            try:
                await greenlet_spawn(getattr, raw, "driver_connection")
            except BaseException:
                raw.invalidate()
                raise
        return raw

    def execution_options(self, **opt: Any) -> QueuedAsyncEngine:
        return QueuedAsyncEngine(self.sync_engine.execution_options(**opt))


def create_async_engine(url: str | URL, **kw: Any) -> QueuedAsyncEngine:
    """SQLAlchemy's ``create_async_engine`` with the settings of :class:`Settings` as keywords more.

    ``sqlite+aiosqlite://`` (and ``sqlite://``) becomes ``sqlite+qsession://``. Any other URL is
    a server's, and the server is the queue: see :doc:`howto/servers`. Raises
    :class:`sqlalchemy.exc.ArgumentError` for a setting that is not allowed.
    """
    url = make_url(url)
    if url.drivername in ("sqlite", "sqlite+aiosqlite"):
        url = url.set(drivername="sqlite+qsession")
    if url.drivername == "sqlite+qsession":
        sizes, url = take_settings(url, kw, ("min_size", "max_size"))
        engine = _create_async_engine(url, **pool_size(sizes.max_size, kw))
    else:
        engine = create_server_engine(url, kw)
    return QueuedAsyncEngine(engine.sync_engine)
