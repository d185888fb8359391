"""create_async_engine and create_engine: the drop-ins for SQLAlchemy's own."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard, cast, overload

import sqlalchemy.ext.asyncio
from sqlalchemy.dialects import registry
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.engine import create_engine as _create_engine
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as _create_async_engine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from qsession.by_url import offer
from qsession.config import OF_SERVERS
from qsession.creation import pool_size, take_settings, wrapped
from qsession.errors import REFUSED
from qsession.urls import database_at, with_driver

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.pool import Pool

    from qsession.servers.pool import ServerPool
    from qsession.servers.replicas import ReplicatedEngine
    from qsession.sqlite.pool import WriteQueuePool
    from qsession.sqlite.synchronous.pool import SynchronousPool
    from qsession.statistics import Stats

# The entry point does the same; this is for a copy of the package that was never installed.
registry.register("sqlite.qsession", "qsession.sqlite.dialect", "QSessionDialect")


def is_queued(engine: AsyncEngine | Engine) -> bool:
    """Whether an engine uses SQLite through qsession's write queue, however it was made."""
    return engine.dialect.driver == "qsession"


def is_ours(engine: AsyncEngine) -> bool:
    """Whether `create_async_engine` made the engine, or its URL is ``sqlite+qsession://``."""
    return isinstance(engine, QueuedAsyncEngine) or is_queued(engine)


# `sqlite/` and `servers/` are imported with the first engine that needs them. Here their classes
# are told by what they have.


def is_replicated(engine: object) -> TypeGuard[ReplicatedEngine]:
    """Whether an engine reads from replicas."""
    return hasattr(engine, "replicas")


def _is_on_server(pool: Pool) -> TypeGuard[ServerPool]:
    return hasattr(pool, "is_on_server")


class QueuedAsyncConnection(AsyncConnection):
    """An `AsyncConnection` whose `get_raw_connection` waits for the write ticket."""

    async def get_raw_connection(self) -> PoolProxiedConnection:
        """The pooled connection. Its ``driver_connection`` stays the same until it is closed.

        On SQLite it waits for the write ticket, because the application may write on the driver's
        connection. The ticket is given back when this connection ends its transaction, or when it
        idles without having written while others wait. A transaction that is then still open on the
        driver's connection is committed or rolled back with it. Raises `QueueTimeout`.
        """
        raw = await super().get_raw_connection()
        if is_queued(self.sync_engine):
            await greenlet_spawn(getattr, raw, "driver_connection")
        return raw

    def __eq__(self, other: object) -> bool:
        """Two proxies of one connection are equal, even if a plain SQLAlchemy session made one."""
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
        """As in SQLAlchemy, which hard-codes its own class."""
        return cls(AsyncEngine._retrieve_proxy_for_target(target.engine), target)


class QueuedAsyncEngine(AsyncEngine):
    """An `AsyncEngine` whose writes to SQLite wait in a fair queue."""

    _connection_cls = QueuedAsyncConnection

    def stats(self) -> Stats:
        """The present state of the write queue, and the counters since the engine was made.

        On a server, the state of the queue for the connections of the pool.
        """
        return stats(self)

    async def fill(self) -> None:
        """Open ``min_size`` connections now, at least one, instead of at the first use.

        Raises the errors of opening a connection. If cancelled, connections already opened stay in
        the pool.
        """
        async with self.connect():
            pass
        if _is_on_server(self.pool):
            await self.pool.fill()
        if is_replicated(self.sync_engine):
            await self.sync_engine.replicas.fill()

    async def drain(self, timeout: float | None = None) -> None:
        """Accept no new transactions, and wait for the present ones, also those in the queue.

        A transaction that tries to begin after this raises `EngineDraining`, until
        ``dispose()``. After ``timeout`` seconds (``None``: no limit) `QueueTimeout` is
        raised, which names the holder of the ticket. After a timeout or a cancellation the engine
        still accepts no new transactions; the present ones continue.
        """
        await drain(self, timeout)

    async def raw_connection(self) -> PoolProxiedConnection:
        """A connection of the pool. On SQLite it holds the write ticket until it is committed,
        rolled back or closed. Raises `QueueTimeout`.
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


def create_async_engine(
    url: str | URL,
    *,
    read_urls: Sequence[str | URL] | None = None,
    max_lag: float | None = None,
    **kw: Any,
) -> QueuedAsyncEngine:
    """SQLAlchemy's ``create_async_engine``, which also takes the names in `Settings`.

    ``sqlite://`` and ``sqlite+aiosqlite://`` become ``sqlite+qsession://``. Any other URL names a
    server, which orders the writers itself: see docs/howto/servers.md. A URL without a driver, such
    as ``postgres://``, ``postgresql://`` or ``mysql://``, gets an asyncio driver.

    ``read_urls``, for PostgreSQL: streaming replicas. Transactions with access ``read`` go to them,
    or to the primary if none can serve: one that is down, that is more than ``max_lag`` seconds
    behind, or that does not have yet what the task has committed. See docs/howto/replicas.md.

    Raises `sqlalchemy.exc.ArgumentError` for a value that is not allowed.
    """
    url = with_driver(url)
    replicated = read_urls is not None or max_lag is not None
    if url.drivername == "sqlite+qsession" and not replicated:
        sizes, url = take_settings(url, kw, OF_SERVERS)
        create = wrapped(_create_async_engine, sqlalchemy.ext.asyncio)
        engine = create(url, **pool_size(sizes.max_size, kw))
    else:
        from qsession.servers.creation import create_replicated_engine, create_server_engine

        if replicated:
            engine = create_replicated_engine(url, read_urls, max_lag, kw)
        else:
            engine = create_server_engine(url, kw)
    return QueuedAsyncEngine(engine.sync_engine)


def create_engine(url: str | URL, **kw: Any) -> Engine:
    """SQLAlchemy's ``create_engine``, for threads, with the settings of `Settings` added.

    ``sqlite://`` becomes ``sqlite+qsession://``. Its transactions wait in the same line as those of
    the asyncio engines on the file, in this process and in others, and all that is said of access,
    reads and durability holds. It needs no event loop, and may be used from any thread. A call
    raises what the asyncio engine would. Interrupted, by Ctrl-C or by what a signal handler raises,
    a statement is broken off and its transaction rolled back; a COMMIT that has begun runs to its
    end first. In a thread in which an event loop runs, a call stops the loop until it returns.

    Any other URL is a server's, and goes to SQLAlchemy as it is, with its driver; ``access="read"``
    and the execution options of qsession hold there as well. Raises `sqlalchemy.exc.ArgumentError`
    for a setting that is not allowed.
    """
    url = make_url(url)
    if "read_urls" in kw or "max_lag" in kw:
        raise ArgumentError("read_urls and max_lag work with create_async_engine only")
    if url.get_backend_name() != "sqlite":
        from qsession.servers.creation import create_synchronous_server_engine

        return create_synchronous_server_engine(url, kw)
    sizes, url = take_settings(url.set(drivername="sqlite+qsession"), kw, OF_SERVERS)
    return wrapped(_create_engine, sqlalchemy)(url, **pool_size(sizes.max_size, kw))


def stats(engine: AsyncEngine | Engine) -> Stats:
    """``engine.stats()``, also for an engine that a framework made from ``sqlite+qsession://``.

    Raises `sqlalchemy.exc.InvalidRequestError` for an engine that is not qsession's.
    """
    if _is_on_server(engine.pool):
        plain = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        replicas = plain.replicas.stats() if is_replicated(plain) else ()
        return replace(engine.pool.stats(), replicas=replicas)
    return _write_queue(engine, "to look at").stats()


@overload
def drain(engine: AsyncEngine, timeout: float | None = None) -> Awaitable[None]: ...
@overload
def drain(engine: Engine, timeout: float | None = None) -> None: ...
def drain(engine: AsyncEngine | Engine, timeout: float | None = None) -> Awaitable[None] | None:
    """``engine.drain(timeout)``, also for an engine that a framework made.

    Await it for an asyncio engine; for a synchronous one it waits in the calling thread. Raises the
    same errors, and `sqlalchemy.exc.InvalidRequestError` for an engine without qsession's write
    queue. Interrupted: as if cancelled.
    """
    pool = _write_queue(engine, "to drain")
    if engine.dialect.is_async:
        return pool.drain(timeout)
    cast("SynchronousPool", pool).wait_for_drain(timeout)
    return None


def database_of(engine: Engine) -> str:
    """What the events of an engine have as their ``database``. A file is known when it is open."""
    if not is_queued(engine):
        return database_at(engine.url)
    return _write_queue(engine, "to name").write_queue.place


def refusal(connection: Connection) -> BaseException | None:
    """Why the transaction of a connection can only be rolled back; None if it can continue."""
    if connection.closed or connection.invalidated:
        return None
    if is_queued(connection.engine):
        failure: Exception | None = cast("Any", connection.connection).transaction.work.failure
        return failure
    _, error = connection.info.get(REFUSED, (None, None))
    return cast("Exception | None", error)


def _write_queue(engine: AsyncEngine | Engine, purpose: str) -> WriteQueuePool:
    if not is_queued(engine):
        raise InvalidRequestError(
            f"The engine for {engine.url.drivername} has no write queue {purpose}: only engines of "
            "qsession on SQLite have one"
        )
    return cast("WriteQueuePool", engine.pool)


offer(is_queued, stats, drain)
