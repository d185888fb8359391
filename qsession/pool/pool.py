"""AsyncConnectionPool: SQL without the ORM, similar to asyncpg's pool, on one engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, InvalidRequestError

from qsession.config import Settings
from qsession.engine import QueuedAsyncEngine, create_async_engine, is_queued
from qsession.errors import QueueTimeout
from qsession.pool.connection import PoolConnection
from qsession.pool.general import GeneralLink
from qsession.pool.link import Link, Take
from qsession.pool.running import Running
from qsession.pool.statements import Statements
from qsession.session import retry
from qsession.urls import with_driver
from qsession.waiting.handoff import Uninterrupted, Waiter, to_end

if TYPE_CHECKING:
    from typing_extensions import Self

    from qsession.pool.sqlite import Direct

_P = ParamSpec("_P")
_T = TypeVar("_T")

ENVIRONMENT = ("QSESSION_URL", "DATABASE_URL")
"""The environment variables that may hold the URL, in this order."""


class _State(Enum):
    """The life of a pool."""

    OPEN = "open"
    CLOSING = "being closed"
    CLOSED = "closed"


class AsyncConnectionPool(Statements):
    """A pool of connections to one database: SQLite, PostgreSQL or MySQL.

    ``dsn`` is ``sqlite:///app.db``, ``postgresql://...`` (with asyncpg), ``mysql://...`` (with
    asyncmy), or any SQLAlchemy URL with an async driver. The default is the environment variable
    ``QSESSION_URL`` or ``DATABASE_URL``. On a server at most ``max_size`` connections are open, and
    ``min_size`` are opened in advance. SQLite has ``max_size`` readers and one writer. Other
    keywords go to `create_async_engine`.

    The pool connects at its first use. ``await pool`` or ``async with pool`` connects at once, and
    raises an error if the database cannot be reached. Raises
    `sqlalchemy.exc.InvalidRequestError` if there is no URL, and `sqlalchemy.exc.ArgumentError` for
    an invalid one.
    """

    def __init__(
        self, dsn: str | URL | None = None, *, min_size: int = 1, max_size: int = 10, **kw: Any
    ) -> None:
        url = database_url(dsn)
        self._engine = create_async_engine(url, min_size=min_size, max_size=max_size, **kw)
        self._settings: Settings = getattr(self._engine.pool, "settings", Settings())
        self._state = _State.OPEN
        self._direct = _direct(self._engine, self._settings)
        self._acquired: dict[PoolConnection | Running, None] = {}
        self._closing: list[Waiter] = []

    def __repr__(self) -> str:
        in_use = f"{len(self._acquired)} acquired"
        return f"<AsyncConnectionPool of {self._engine.url!r} {self._state.value}, {in_use}>"

    @property
    def engine(self) -> QueuedAsyncEngine:
        """The engine of the pool, for SQLAlchemy expressions, the ORM, and ``stats()``."""
        return self._engine

    def __await__(self) -> Generator[Any, None, AsyncConnectionPool]:
        return self._connect().__await__()

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, type_: object, value: object, traceback: object) -> None:
        await self.close()

    async def _connect(self) -> AsyncConnectionPool:
        self._refuse_unless_open()
        await self._engine.fill()
        return self

    def acquire(self, *, timeout: float | None = None) -> Acquisition:
        """A connection, for ``async with``; or ``await`` it, and return it with `release`.

        On a server it waits for a free connection for up to ``timeout`` seconds, and at most
        ``queue_timeout``, and then raises `QueueTimeout`. On SQLite it does not wait: a connection
        uses a reader or the write ticket only during a transaction. If cancelled, it acquires
        nothing.
        """
        return Acquisition(self, timeout)

    async def release(self, connection: PoolConnection) -> None:
        """Return a connection to the pool, and roll back its open transaction, if any.

        It first waits for a statement that another task runs on the connection. No effect if the
        connection was already released. Raises `sqlalchemy.exc.ArgumentError` for a connection of
        another pool. A cancellation is raised after the release has ended.
        """
        if connection._engine is not self._engine.sync_engine:
            raise ArgumentError(f"{connection!r} was not acquired from {self!r}")
        if connection not in self._acquired:
            return
        try:
            await Uninterrupted(connection._close())
        finally:
            self._forget(connection)

    def _forget(self, user: PoolConnection | Running) -> None:
        """Note that ``user`` no longer uses the pool; ``close()`` waits for all users."""
        self._acquired.pop(user, None)
        if not self._acquired:
            while self._closing:
                self._closing.pop().wake()

    @asynccontextmanager
    async def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> AsyncIterator[PoolConnection]:
        """A connection with an open transaction: see `PoolConnection.transaction`."""
        to_read = readonly or self._settings.access == "read"
        to_read = to_read and (isolation or "").upper() != "SERIALIZABLE"  # no replica offers that
        async with (
            Acquisition(self, None, to_read) as connection,
            connection.transaction(isolation=isolation, readonly=readonly),
        ):
            yield connection

    @overload
    async def run(
        self,
        fn: Callable[Concatenate[PoolConnection, ...], Awaitable[_T]],
        *args: Any,
        attempts: int,
        **kw: Any,
    ) -> _T: ...

    @overload
    async def run(
        self,
        fn: Callable[Concatenate[PoolConnection, _P], Awaitable[_T]],
        *args: _P.args,
        **kw: _P.kwargs,
    ) -> _T: ...

    async def run(
        self,
        fn: Callable[..., Awaitable[_T]],
        *args: Any,
        attempts: Any = retry.ATTEMPTS,
        **kw: Any,
    ) -> _T:
        """Call ``fn(connection, *args, **kw)`` in a transaction, commit, and return its result.

        After a `ConflictError`, ``fn`` is called again, at most ``attempts`` times; then the error
        is raised. So the effects of ``fn`` outside the database must be repeatable.
        """
        return await retry.run(self.transaction, attempts, fn, *args, **kw)

    async def executemany(
        self, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]], /
    ) -> None:
        async with self.acquire() as connection:
            await connection.executemany(sql, rows)

    async def _run(
        self, take: Take[_T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> _T:
        direct = self._direct
        if direct is not None and not direct.is_observed:
            return await self._run_direct(direct.run, take, sql, args, named)
        connection = self._admit()
        try:
            return await connection._run(take, sql, args, named)
        finally:
            await self.release(connection)

    async def _run_direct(self, run: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        self._refuse_unless_open()
        running = Running()
        self._acquired[running] = None
        try:
            return await run(*args)
        except asyncio.CancelledError:
            if running.was_broken_off():
                self._refuse_unless_open()
            raise
        finally:
            running.end()
            self._forget(running)

    def _admit(self, to_read: bool | None = None) -> PoolConnection:
        self._refuse_unless_open()
        engine, settings, direct = self._engine.sync_engine, self._settings, self._direct
        if direct is None or direct.is_observed:
            link: Link = GeneralLink(engine, {"qsession_access": settings.access}, to_read)
        else:
            link = direct.link()
        connection = PoolConnection(engine, link, settings.access, settings.queue_timeout)
        self._acquired[connection] = None
        return connection

    async def _acquire(self, timeout: float | None, to_read: bool | None = None) -> PoolConnection:
        connection = self._admit(to_read)
        try:
            if timeout is None:
                await connection._open()
            else:
                await self._open_in_time(connection, timeout)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def _open_in_time(self, connection: PoolConnection, timeout: float) -> None:
        opening = asyncio.ensure_future(connection._open())
        opening.add_done_callback(_look_at)
        try:
            await asyncio.wait([opening], timeout=timeout)
            if opening.cancel():  # it had not ended
                await asyncio.wait([opening])
            self._refuse_if_cancelled(opening, timeout)
            opening.result()
        finally:
            opening.cancel()

    def _refuse_if_cancelled(self, opening: asyncio.Future[Any], timeout: float) -> None:
        if opening.cancelled():
            others = len(self._acquired) - 1
            raise QueueTimeout(
                f"No connection became free within {timeout:g} s; other tasks use or wait for "
                f"{others} connections. {self._engine.pool.status()}"
            )

    def _refuse_unless_open(self) -> None:
        if self._state is not _State.OPEN:
            raise InvalidRequestError(f"The pool is {self._state.value}: create a new one.")

    async def close(self) -> None:
        """Refuse new requests, wait until all connections are released, and close them.

        If cancelled, it terminates the pool, as in asyncpg. Use
        ``asyncio.wait_for(pool.close(), seconds)`` to set a time limit.
        """
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSING
        waiter = Waiter()
        self._closing.append(waiter)
        try:
            given_back = waiter.prepare()
            if self._acquired:
                await given_back
        except BaseException:
            await to_end(self.terminate())
            raise
        await to_end(self._dispose())

    async def terminate(self) -> None:
        """Close all connections, even those in use; open transactions are rolled back.

        A running statement is interrupted. If it runs outside a transaction it may have taken
        effect, or still do so on a server: the request to cancel it has a connection of its own,
        and may arrive before the statement.
        """
        self._state = _State.CLOSED
        for user in list(self._acquired):
            await user._terminate()
        await self._dispose()

    async def _dispose(self) -> None:
        await self._engine.dispose()
        self._state = _State.CLOSED


class Acquisition:
    """The result of `AsyncConnectionPool.acquire`: await it, or use it in ``async with``."""

    def __init__(
        self, pool: AsyncConnectionPool, timeout: float | None, to_read: bool | None = None
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._to_read = to_read

    def __await__(self) -> Generator[Any, None, PoolConnection]:
        return self._pool._acquire(self._timeout).__await__()

    async def __aenter__(self) -> PoolConnection:
        self._connection = await self._pool._acquire(self._timeout, self._to_read)
        return self._connection

    async def __aexit__(self, type_: object, value: object, traceback: object) -> None:
        await self._pool.release(self._connection)


def _look_at(opening: asyncio.Future[Any]) -> None:
    """Retrieve the exception, because a cancelled `acquire` does not."""
    if not opening.cancelled():
        opening.exception()


def _direct(engine: QueuedAsyncEngine, settings: Settings) -> Direct | None:
    """The path to SQLite without SQLAlchemy's connection; None for other databases."""
    if not is_queued(engine):
        return None
    from qsession.pool.sqlite import Direct  # with the dialect, which the engine has imported

    return Direct(engine.sync_engine, {"qsession_access": settings.access})


def create_pool(
    dsn: str | URL | None = None, *, min_size: int = 1, max_size: int = 10, **kw: Any
) -> AsyncConnectionPool:
    """An `AsyncConnectionPool`: ``pool = await create_pool(...)`` connects it."""
    return AsyncConnectionPool(dsn, min_size=min_size, max_size=max_size, **kw)


def database_url(dsn: str | URL | None) -> URL:
    """The URL to connect to, with an async driver."""
    found = dsn or next(filter(None, map(os.environ.get, ENVIRONMENT)), None)
    if found is None:
        raise InvalidRequestError(
            "no database is configured: pass a URL, as in create_pool('sqlite:///app.db'), or set "
            f"the environment variable {' or '.join(ENVIRONMENT)}"
        )
    return with_driver(found)
