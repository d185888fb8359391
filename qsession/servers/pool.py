"""ServerPool: SQLAlchemy's pool with a minimum size, a fair queue, and a limit for the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import greenlet_spawn

from qsession import events
from qsession.config import Settings
from qsession.errors import QueueFull, QueueTimeout
from qsession.servers.loops import Abandoned
from qsession.servers.mutex import Mutex, serve_all_loops
from qsession.servers.opening import Opening
from qsession.statistics import Counters, HistogramRecorder, Stats
from qsession.waiting.connection_queue import ConnectionQueue
from qsession.waiting.handoff import running_loop


class _Place(_ConnectionRecord):
    """A record in the pool, with or without a connection."""

    def __init__(self, pool: ServerPool) -> None:
        super().__init__(pool, connect=False)
        self._dbapi: Any = cast("Any", pool._dialect).loaded_dbapi

    def get_connection(self) -> Any:
        """As in SQLAlchemy, which asks asyncpg for more before it wraps the errors of asyncpg."""
        try:
            return super().get_connection()
        except self._dbapi.Error:
            raise
        except Exception as error:
            if _is_asyncpgs(error):
                raise _wrapped(self._dbapi, error) from error
            raise

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """As in SQLAlchemy, but a cancelled reset of the connection does not lose the record."""
        try:
            super().checkin(_fairy_was_created)
        except BaseException as error:
            try:
                self.invalidate(error)
            finally:
                super().checkin(_fairy_was_created=False)
            raise


class ServerPool(AsyncAdaptedQueuePool):
    """The class of ``engine.pool`` on a server. SQLAlchemy's pool arguments keep their meaning.

    Tasks get connections first come, first served. A task first gets a pool record, and then opens
    its connection. If that fails, the record goes to the next waiting task.
    """

    is_on_server = True
    """What tells it from other pools where this module is not imported."""
    _queue_class = ConnectionQueue
    _sqla_logger_namespace = "sqlalchemy.pool.impl.ServerPool"
    _pool: ConnectionQueue

    def __init__(self, creator: Any, settings: Settings | None = None, **kw: Any) -> None:
        super().__init__(creator, **kw)
        self._first = Mutex()
        serve_all_loops(self, self._first)
        self.settings = settings or Settings()
        if 0 < self.size() < self.settings.min_size:
            raise ArgumentError(
                f"min_size={self.settings.min_size!r} is not allowed: it is larger than "
                f"pool_size={self.size()}"
            )
        self.database = ""
        """The database, in events."""
        self.counters = Counters()
        self.waits = HistogramRecorder()
        self.opening = Opening(self._discard)
        self._connect = self._invoke_creator
        self._invoke_creator = self._open
        self.abandoned = Abandoned()
        self._loops: dict[int, asyncio.AbstractEventLoop] = {}
        """The loop of each open connection, by its id()."""
        self._taken: dict[Any, tuple[float, str]] = {}
        """The records in use, oldest first: since when, and by which task."""
        self._filling: asyncio.Task[None] | None = None
        self._replaced = False

    @property
    def max_size(self) -> int | None:
        """The largest number of connections; None for no limit."""
        return None if self._max_overflow < 0 else self.size() + self._max_overflow

    @property
    def open_connections(self) -> int:
        """The number of open connections, in use or idle."""
        return self.checkedout() + self._pool.open

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for a connection."""
        return self._pool.waiting

    @property
    def is_exhausted(self) -> bool:
        """Whether all connections that there may be are in use."""
        return self._pool.empty() and 0 <= self._max_overflow <= self._overflow

    def stats(self) -> Stats:
        """The present queue for connections, and the counters since the engine was made."""
        waits, counters = self.waits.freeze(), self.counters
        return Stats(
            waiting=self.waiting + self.opening.waiting,
            holder=None,
            acquired=waits.count,
            timeouts=counters.timeouts,
            conflicts=counters.conflicts,
            validations=0,
            taken_away=0,
            commits=counters.commits,
            syncs=0,
            longest_inline=0.0,
            predicted=0,
            waits=waits,
            holds=counters.holds.freeze(),
            size=self.open_connections,
            in_use=self.checkedout(),
        )

    async def fill(self) -> None:
        """Open connections until ``min_size`` are open. Raises the errors of the driver."""
        while self._is_filling and self._filling is not None:
            await asyncio.wait([self._filling])
        await greenlet_spawn(self._fill)

    @property
    def _is_filling(self) -> bool:
        """Whether a task of this loop is filling. A task of another loop may never finish."""
        return self._filling is not None and self._filling.get_loop() is running_loop()

    def _fill(self) -> None:
        while self.open_connections < self.settings.min_size:
            record = self._vacant()
            if record is None:
                return
            try:
                record.get_connection()
            except BaseException as error:
                record._checkin_failed(error, _fairy_was_created=False)
                raise
            record.checkin(_fairy_was_created=False)

    def _vacant(self) -> Any:
        """A record without a connection; None if there is none."""
        record = self._pool.pick(lambda each: each.dbapi_connection is None)
        if record is None and self._inc_overflow():
            record = self._create_connection()
        return record

    def _create_connection(self) -> ConnectionPoolEntry:
        return cast("ConnectionPoolEntry", _Place(self))

    def _open(self, rec: ConnectionPoolEntry) -> Any:
        """Open the connection of a record; SQLAlchemy calls this if it has none."""
        dbapi: Any = cast("Any", self._dialect).loaded_dbapi
        deadline: float = vars(rec).get("deadline", time.monotonic() + self._timeout)
        try:
            connection = self.opening.open(partial(self._connect, rec), deadline)
        except QueueTimeout:
            self.counters.timeouts += 1
            raise
        except dbapi.Error:
            raise
        except Exception as error:  # drivers do not wrap all errors
            if isinstance(error, (OSError, asyncio.TimeoutError)) or _is_asyncpgs(error):
                raise _wrapped(dbapi, error) from error
            raise
        loop = asyncio.get_running_loop()
        self._loops[id(connection)] = loop
        if not self._is_filling and self.open_connections < self.settings.min_size:
            # Not an eager task, which would begin in this greenlet and lose what it awaits.
            self._filling = asyncio.Task(greenlet_spawn(self._fill), loop=loop)
            self._filling.add_done_callback(self._filled)
        return connection

    async def _discard(self, connection: Any) -> None:
        await greenlet_spawn(partial(self._close_connection, connection, terminate=True))

    def _filled(self, task: asyncio.Task[None]) -> None:
        if self._filling is task:
            self._filling = None
        if not task.cancelled() and task.exception() is not None:
            self.logger.warning(
                "The pool could not open min_size connections in advance: %s", task.exception()
            )

    def _do_get(self) -> ConnectionPoolEntry:
        limit = self.settings.max_waiting
        exhausted = self.is_exhausted
        if limit is not None and exhausted and self.waiting >= limit:
            if events.observers:
                events.emit(events.ConnectionWait(self.database, 0.0, "full"))
            raise QueueFull(
                f"{self.waiting} tasks are already waiting for a connection (max_waiting). "
                f"{self._who_has_them()} Try again later, or reject the request."
            )
        began, outcome = time.monotonic(), "cancelled"
        try:
            record: Any = super()._do_get()
            outcome = "granted"
        except QueueTimeout:
            outcome = "timeout"
            raise
        except PoolTimeout:
            self.counters.timeouts += 1
            outcome = "timeout"
            raise QueueTimeout(
                f"No connection became free within {self._timeout:g} s; {self.waiting} more "
                f"tasks are waiting. {self._who_has_them()}"
            ) from None
        finally:
            if exhausted and events.observers:
                took = time.monotonic() - began
                events.emit(events.ConnectionWait(self.database, took, outcome))
        now = time.monotonic()
        self.waits.observe(now - began)
        record.deadline = began + self._timeout
        self._taken[record] = now, _task_name()
        if record.dbapi_connection is not None and self._is_foreign(record.dbapi_connection):
            record.invalidate()
        return cast("ConnectionPoolEntry", record)

    def _who_has_them(self) -> str:
        text = f"{self.checkedout()} of {self.max_size} connections are in use."
        for since, task in list(self._taken.values())[:1]:
            held = time.monotonic() - since
            return f"{text} The oldest has been in use for {held:.2f} s by {task}."
        return text

    def _is_foreign(self, connection: Any) -> bool:
        return self._loops.get(id(connection)) is not running_loop()

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        foreign = self._is_foreign(connection)
        loop = self._loops.pop(id(connection), None)
        if foreign and loop is not None:
            self.abandoned.add(connection, loop)
        else:
            super()._close_connection(connection, terminate=terminate)

    def _do_return_conn(self, record: Any) -> None:
        taken = self._taken.pop(record, None)
        if taken is not None:
            self.counters.holds.observe(time.monotonic() - taken[0])
        try:
            if self._replaced:
                record.invalidate()  # this pool will not be disposed of again
        finally:
            super()._do_return_conn(record)

    def _invalidate(self, connection: Any, exception: Any = None, _checkin: bool = True) -> None:
        """As in SQLAlchemy, which calls the pool of the engine, also for a replica's connection."""
        pool = getattr(connection, "_pool", self)
        if pool is self:
            super()._invalidate(connection, exception, _checkin)
        else:
            pool._invalidate(connection, exception, _checkin)

    def recreate(self) -> ServerPool:
        pool = super().recreate()
        assert isinstance(pool, ServerPool)
        pool.settings, pool.counters, pool.waits = self.settings, self.counters, self.waits
        pool.opening, pool.abandoned = self.opening, self.abandoned
        pool.database = self.database
        self.retire()
        return pool

    def beside(self, database: str, connect: Callable[..., Any]) -> ServerPool:
        """A pool as this one, for another server. Listeners of this one hear of both."""
        pool = super().recreate()
        assert isinstance(pool, ServerPool)
        pool.settings, pool.database = self.settings, database
        pool._connect = pool._should_wrap_creator(connect)
        del vars(pool)["dispatch"]  # a copy of the present listeners
        pool.dispatch = pool.dispatch._join(self.dispatch)
        serve_all_loops(pool, self._first)
        return pool

    def retire(self) -> None:
        """Close the connections that are in use when they come back."""
        self._replaced = True
        self.abandoned.sweep()
        if self._is_filling and self._filling is not None:
            self._filling.cancel()


def _is_asyncpgs(error: Exception) -> bool:
    """Whether asyncpg raised it, also where it is no server's error: there is no primary."""
    return type(error).__module__.partition(".")[0] == "asyncpg" or hasattr(error, "sqlstate")


def _wrapped(dbapi: Any, error: Exception) -> Exception:
    wrapped: Exception = dbapi.OperationalError(f"{type(error).__name__}: {error}")
    return wrapped


def _task_name() -> str:
    task = asyncio.current_task() if running_loop() is not None else None
    return "code outside a task" if task is None else f"task {task.get_name()!r}"
