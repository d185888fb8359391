"""create_async_engine and QueuedAsyncEngine: the drop-in for SQLAlchemy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.dialects import registry
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as _create_async_engine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from qsession.by_url import offer
from qsession.servers.creation import create_server_engine, pool_size, take_settings
from qsession.servers.failures import REFUSED
from qsession.servers.pool import ServerPool
from qsession.statistics import Stats
from qsession.urls import with_driver

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from qsession.sqlite.pool import WriteQueuePool

# The entry point says the same; this serves a copy of the package that was never installed. The
# dialect, and what it needs, is imported with the first engine.
registry.register("sqlite.qsession", "qsession.sqlite.dialect", "QSessionDialect")


def is_queued(engine: AsyncEngine | Engine) -> bool:
    """Whether its database is SQLite, with our queue of writers, whoever has made the engine."""
    return engine.dialect.driver == "qsession"


def is_ours(engine: AsyncEngine) -> bool:
    """Whether `create_async_engine` has made it, or its URL is ``sqlite+qsession://``."""
    return isinstance(engine, QueuedAsyncEngine) or is_queued(engine)


class QueuedAsyncConnection(AsyncConnection):
    """An `AsyncConnection` that can wait for the driver's connection."""

    async def get_raw_connection(self) -> PoolProxiedConnection:
        """The pooled connection, whose ``driver_connection`` stays with it until it is closed.

        It waits for the write ticket, as what is done there may write. The ticket goes back when
        this connection ends its transaction, or idles in the way of others without having written.
        What the driver's connection has not committed by then is rolled back or committed with it.
        Raises `QueueTimeout`.
        """
        raw = await super().get_raw_connection()
        if is_queued(self.sync_engine):
            await greenlet_spawn(getattr, raw, "driver_connection")
        return raw

    def __eq__(self, other: object) -> bool:
        """Of one connection, also where a session of SQLAlchemy's own made the other proxy."""
        if not isinstance(other, AsyncConnection):
            return NotImplemented
        return bool(self._proxied == other._proxied)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = AsyncConnection.__hash__

    @classmethod
    def _regenerate_proxy_for_target(
        cls, target: Connection, **_additional_kw: Any
    ) -> QueuedAsyncConnection:
        """As in SQLAlchemy, which names its own class there."""
        return cls(AsyncEngine._retrieve_proxy_for_target(target.engine), target)


class QueuedAsyncEngine(AsyncEngine):
    """An `AsyncEngine` whose SQLite writes wait in a fair queue."""

    _connection_cls = QueuedAsyncConnection

    def stats(self) -> Stats:
        """The write queue at this moment, and the counters since the engine was made.

        On a server it is the line for the connections of the pool.
        """
        return stats(self)

    async def fill(self) -> None:
        """Open ``min_size`` connections now, and at least one, rather than with the first use.

        Raises what opening a connection raises. Cancelled, it keeps those it has opened.
        """
        async with self.connect():
            pass
        if isinstance(self.pool, ServerPool):
            await self.pool.fill()

    async def drain(self, timeout: float | None = None) -> None:
        """Take no new transactions and wait for those at work, the queue included, to end.

        From then on a transaction that begins raises `EngineDraining`, until ``dispose()``.
        After ``timeout`` seconds (``None``: however long it takes) it raises
        `QueueTimeout`, which names who holds the ticket. Cancelled, or out of time, the
        engine stays closed to new transactions; those at work go on.
        """
        await drain(self, timeout)

    async def raw_connection(self) -> PoolProxiedConnection:
        """A connection of the pool, holding the write ticket until it is committed, rolled back
        or closed. Raises `QueueTimeout`.
        """
        raw = await super().raw_connection()
        if is_queued(self):
            try:
                await greenlet_spawn(getattr, raw, "driver_connection")
            except BaseException:
                raw.invalidate()
                raise
        return raw

    def execution_options(self, **opt: Any) -> QueuedAsyncEngine:
        return QueuedAsyncEngine(self.sync_engine.execution_options(**opt))


def create_async_engine(url: str | URL, **kw: Any) -> QueuedAsyncEngine:
    """SQLAlchemy's ``create_async_engine`` with the settings of `Settings` as keywords more.

    ``sqlite+aiosqlite://`` (and ``sqlite://``) becomes ``sqlite+qsession://``. Any other URL is
    a server's, and the server is the queue: see docs/howto/servers.md. One that names no driver, as
    ``postgres://``, ``postgresql://`` and ``mysql://``, gets one for asyncio. Raises
    `sqlalchemy.exc.ArgumentError` for a setting that is not allowed.
    """
    url = with_driver(url)
    if url.drivername == "sqlite+qsession":
        sizes, url = take_settings(url, kw, ("min_size", "max_size"))
        engine = _create_async_engine(url, **pool_size(sizes.max_size, kw))
    else:
        engine = create_server_engine(url, kw)
    return QueuedAsyncEngine(engine.sync_engine)


def stats(engine: AsyncEngine | Engine) -> Stats:
    """``engine.stats()``, also for an engine that a framework has made from ``sqlite+qsession://``.

    Raises `sqlalchemy.exc.InvalidRequestError` for an engine that is not qsession's.
    """
    if isinstance(engine.pool, ServerPool):
        return engine.pool.stats()
    return _write_queue(engine, "to look at").stats()


async def drain(engine: AsyncEngine | Engine, timeout: float | None = None) -> None:
    """``engine.drain(timeout)``, also for an engine that a framework has made.

    Raises what that raises, and `sqlalchemy.exc.InvalidRequestError` for an engine that has
    no queue of writers.
    """
    await _write_queue(engine, "to drain").drain(timeout)


def refusal(connection: Connection) -> BaseException | None:
    """Why the transaction of a connection can only be rolled back; None if it can go on."""
    if connection.closed or connection.invalidated:
        return None
    if is_queued(connection.engine):
        failure: Exception | None = cast("Any", connection.connection).transaction.work.failure
        return failure
    _, error = connection.info.get(REFUSED, (None, None))
    return cast("Exception | None", error)


def _write_queue(engine: AsyncEngine | Engine, purpose: str) -> WriteQueuePool:
    if not is_queued(engine):
        raise InvalidRequestError(f"{engine.url.drivername} has no write queue of ours {purpose}")
    return cast("WriteQueuePool", engine.pool)


offer(is_queued, stats, drain)
