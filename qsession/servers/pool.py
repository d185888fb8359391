"""ServerPool: SQLAlchemy's pool with a minimum size, a fair queue, and a limit for the queue."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, cast

from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import greenlet_spawn

from qsession.config import Settings
from qsession.errors import QueueFull, QueueTimeout
from qsession.servers.loops import Abandoned
from qsession.servers.mutex import serve_all_loops
from qsession.servers.opening import Opening
from qsession.statistics import Counters, HistogramRecorder, Stats
from qsession.waiting.connection_queue import ConnectionQueue
from qsession.waiting.handoff import running_loop


class _Place(_ConnectionRecord):
    """A record in the pool, with or without a connection."""

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

    _queue_class = ConnectionQueue
    _sqla_logger_namespace = "sqlalchemy.pool.impl.ServerPool"
    _pool: ConnectionQueue

    def __init__(self, creator: Any, settings: Settings | None = None, **kw: Any) -> None:
        super().__init__(creator, **kw)
        serve_all_loops(self)
        self.settings = settings or Settings()
        if 0 < self.size() < self.settings.min_size:
            raise ArgumentError(
                f"min_size={self.settings.min_size!r} is not allowed: it is larger than "
                f"pool_size={self.size()}"
            )
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

    def stats(self) -> Stats:
        """The present queue for connections, and the counters since the engine was made."""
        waits, counters = self.waits.freeze(), self.counters
        return Stats(
            waiting=self._pool.waiting + self.opening.waiting,
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
        return cast("ConnectionPoolEntry", _Place(self, connect=False))

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
            if isinstance(error, (OSError, asyncio.TimeoutError)) or hasattr(error, "sqlstate"):
                raise dbapi.OperationalError(f"{type(error).__name__}: {error}") from error
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
        exhausted = self._pool.empty() and 0 <= self._max_overflow <= self._overflow
        if limit is not None and exhausted and self._pool.waiting >= limit:
            raise QueueFull(
                f"{self._pool.waiting} tasks are already waiting for a connection (max_waiting). "
                f"{self._who_has_them()} Try again later, or reject the request."
            )
        began = time.monotonic()
        try:
            record: Any = super()._do_get()
        except QueueTimeout:
            raise
        except PoolTimeout:
            self.counters.timeouts += 1
            raise QueueTimeout(
                f"No connection became free within {self._timeout:g} s; {self._pool.waiting} more "
                f"tasks are waiting. {self._who_has_them()}"
            ) from None
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

    def recreate(self) -> ServerPool:
        pool = super().recreate()
        assert isinstance(pool, ServerPool)
        pool.settings, pool.counters, pool.waits = self.settings, self.counters, self.waits
        pool.opening, pool.abandoned = self.opening, self.abandoned
        self.abandoned.sweep()
        self._replaced = True
        if self._is_filling and self._filling is not None:
            self._filling.cancel()
        return pool


def _task_name() -> str:
    task = asyncio.current_task() if running_loop() is not None else None
    return "code outside a task" if task is None else f"task {task.get_name()!r}"
