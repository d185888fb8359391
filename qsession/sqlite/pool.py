"""WriteQueuePool: a bounded pool of reader connections, and the one writer beside it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, cast

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.pool.base import ResetStyle, _ConnectionRecord
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet
from sqlalchemy.util.queue import Empty

from qsession.config import Settings
from qsession.errors import QueueTimeout
from qsession.sqlite.connection import RoutedConnection
from qsession.sqlite.driver.physical import DriverConnection, file_identity
from qsession.sqlite.driver.setup import keep_ready, make_ready
from qsession.sqlite.durability.checkpoint import Checkpointer
from qsession.sqlite.files.explain import explain
from qsession.sqlite.files.read_only import fingerprint
from qsession.sqlite.lease import ReaderLease
from qsession.sqlite.pace import Pace, Who, turns
from qsession.sqlite.processes import fork, status
from qsession.sqlite.queue.admission import Admission
from qsession.sqlite.writer import Writer
from qsession.stats import Stats
from qsession.waiting.connection_queue import ConnectionQueue
from qsession.waiting.handoff import to_end
from qsession.waiting.ticket import Ticket, TicketQueue, TicketState


class WriteQueuePool(AsyncAdaptedQueuePool):
    """What ``engine.pool`` is.

    ``pool_size`` and the other arguments mean what they mean for SQLAlchemy's own pool, and are
    about the readers; the writer is one connection more.
    """

    _queue_class = ConnectionQueue
    _sqla_logger_namespace = "sqlalchemy.pool.impl.WriteQueuePool"
    _dialect: Any  # a QSessionDialect
    _pool: ConnectionQueue

    def __init__(self, creator: Any, **kw: Any) -> None:
        super().__init__(creator, **kw)
        self.writer = Writer(self)
        self.pace = Pace(self.settings.inline)
        self.checkpointer = Checkpointer(self)
        self.admission = Admission()
        self.isolation_level: str | None = self._dialect._on_connect_isolation_level
        """What ``create_async_engine(isolation_level=...)`` asked for."""
        self.looked: tuple[object, object] | None = None
        """The turn of a loop in which the file was last looked at, and what was found."""
        self._initialized = False
        self._initializing = TicketQueue()
        self._replaced = False
        fork.pools.add(self)

    @property
    def settings(self) -> Settings:
        settings: Settings = self._dialect.settings
        return settings

    @property
    def database(self) -> str:
        """The database as messages name it."""
        return str(self._dialect.database)

    def reset(self, connection: RoutedConnection) -> None:
        """End the transaction of a connection that is closed, as ``pool_reset_on_return`` says."""
        if self._reset_on_return is ResetStyle.reset_commit:
            self._dialect.do_commit(connection)
        elif self._reset_on_return is ResetStyle.reset_rollback:
            self._dialect.do_rollback(connection)

    def connect(self) -> PoolProxiedConnection:
        """A connection that has no physical one yet.

        The first call opens the writer, so that a database that cannot be opened is reported here,
        and SQLAlchemy's dialect is initialized before the first statement is compiled.
        """
        if not self._initialized:
            self._initialize()
        if in_greenlet():
            turn = turns.of(asyncio.get_running_loop())
            if turn.crowded:
                await_only(turn.later(Who.NEW))
            turn.begin()
        return RoutedConnection(self)

    def _initialize(self) -> None:
        ticket = Ticket(self)
        state = self._initializing.take(ticket)
        if state is not TicketState.HELD:
            timeout = self.settings.queue_timeout
            state = await_only(self._initializing.wait(ticket, timeout))
        if state is not TicketState.HELD:
            raise PoolTimeout(f"{self.database!r} could not be opened in {timeout:g} s")
        try:
            if not self._initialized:
                self.writer.open_first()
                self._initialized = True
                status.serve()
        finally:
            self._initializing.release(ticket)

    def reader(self) -> ReaderLease:
        """A reader; waits for one for ``pool_timeout`` seconds. In a greenlet."""
        dispatch = self.dispatch
        if self._pre_ping or self.echo or dispatch.checkout or dispatch.checkin or dispatch.reset:
            return self._observed_reader()
        record: Any = self._pool.take() or self._do_get()
        try:
            driver: DriverConnection = record.get_connection()
            if driver.role is None:
                self.make_ready(driver, "reader")
        except BaseException as error:
            record._checkin_failed(error, _fairy_was_created=False)
            raise
        return ReaderLease(driver, partial(self._checkin, record))

    def _checkin(self, record: Any) -> None:
        if record.dbapi_connection is not None and record.dbapi_connection.suspect:
            record.invalidate()
        self._do_return_conn(record)

    def _observed_reader(self) -> ReaderLease:
        """The same by SQLAlchemy's own checkout, for those who listen to it."""
        proxied: Any = super().connect()
        driver: DriverConnection = proxied.dbapi_connection
        try:
            self.make_ready(driver, "reader")
        except BaseException as error:
            proxied.invalidate(error)
            raise
        return ReaderLease(driver, partial(_end_observed, proxied, driver))

    def _create_connection(self) -> ConnectionPoolEntry:
        """A place in the pool; its connection is opened by the checkout.

        If that fails or is cancelled, the place goes to the next who waits.
        """
        record: Any = _ConnectionRecord(self, connect=False)
        record.home = self._pool
        return cast("ConnectionPoolEntry", record)

    def make_ready(self, driver: DriverConnection, role: str) -> None:
        """Make a connection that was just opened, and seen by listeners, a reader or the writer."""
        if driver.role != role:
            driver.path = driver.run(make_ready, role)
            if role == "writer" and driver.path:
                driver.run(self.checkpointer.take_over, driver.path)
            driver.identity = _identity(driver) if driver.path else None
            fork.refuse_carried(driver.path, driver.identity)
            driver.role = role

    def make_ready_again(self, driver: DriverConnection) -> None:
        """After a PRAGMA or an ATTACH, which may have changed what a connection needs."""
        driver.post(keep_ready, driver.role)
        if driver.role == "writer" and driver.path:
            driver.post(self.checkpointer.share)

    def check_file(self, driver: DriverConnection) -> None:
        """Raise if the file was deleted or replaced since the connection was opened.

        In WAL mode SQLite would go on reading and writing the file that has no name any more
        (https://sqlite.org/howtocorrupt.html, 4.2). The next transaction gets fresh connections.
        """
        now = driver.identity and _identity(driver)
        if now == driver.identity:
            return
        self._invalidate_time = time.time()
        if driver.frozen and now is not None:
            raise sqlite3.OperationalError(
                f"The database file {driver.path!r} was changed by another user while it was read "
                "here, where its folder is read-only. Run the transaction again."
            )
        changed = "deleted" if now is None else "replaced by another file"
        raise sqlite3.OperationalError(
            f"The database file {driver.path!r} was {changed} while it was open. Nothing of this "
            "transaction was written. The next transaction opens the file anew."
        )

    def explain(self, error: Exception) -> Exception:
        """The same error, with what a user can do about it."""
        return explain(error, self.database)

    def stats(self) -> Stats:
        return self.writer.stats(self.checkedout() + self._pool.open, self.checkedout())

    async def drain(self, timeout: float | None) -> None:
        """Refuse new transactions and wait for the end of those at work."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not await self.admission.drain(timeout):
            raise QueueTimeout(
                f"{self.admission.inside} transactions on {self.database!r} were still at work "
                f"after {timeout:g} s of drain(). {self.writer.holder_text()}"
            )
        await self.writer.until_free(deadline)

    def recreate(self) -> WriteQueuePool:
        pool = super().recreate()
        assert isinstance(pool, WriteQueuePool)
        pool.writer = Writer(pool, before=self.writer)
        pool.pace = self.pace
        self._replaced = True
        self.writer.retire()  # somebody may have begun here while the others were closed
        while (record := self._idle()) is not None:
            record.invalidate()
        return pool

    def _idle(self) -> Any:
        """Take an idle reader out; None if there is none."""
        with suppress(Empty):
            return self._pool.get(False)
        return None

    def close_idle(self) -> None:
        """Close what nobody uses, in this thread: the process is about to fork."""
        for record in list(iter(self._idle, None)):
            fork.close(record)
            self._pool.put(record)
        self.writer.close_idle()
        self.checkpointer.wait(fork.PATIENCE)

    def begin_anew(self) -> None:
        """In a forked child: everything that was is the parent's, and no thread of it is here."""
        self._pool = self._queue_class(self._pool.maxsize, self._pool.use_lifo)
        self._overflow = -self.size()
        self._overflow_lock = threading.Lock()
        self._initialized, self._initializing = False, TicketQueue()
        self.admission = Admission()
        self.checkpointer = Checkpointer(self)
        self.writer = Writer(self)

    def _do_return_conn(self, record: Any) -> None:
        if record.home is not self._pool:
            return  # the parent's, in a forked child
        if self._replaced:
            record.close()  # nobody will dispose of this pool again
        super()._do_return_conn(record)

    def dispose(self) -> None:
        """Close what is not in use, to the end; a cancellation is raised afterwards.

        The pool can be used again, as it is when a cancelled ``engine.dispose()`` keeps it.
        """
        if in_greenlet():
            await_only(to_end(greenlet_spawn(self._dispose)))
        else:
            self._dispose()

    def _dispose(self) -> None:
        while (record := self._idle()) is not None:
            record.close()
            self._dec_overflow()  # those in use still count, unlike in QueuePool.dispose()
        self.logger.info("Pool disposed. %s", self.status())
        writer, self.writer = self.writer, Writer(self, before=self.writer)
        writer.dispose()
        self._dialect.discard_memory()

    def status(self) -> str:
        queue = self.writer.queue
        held = "held" if queue.holder is not None else "free"
        return f"{super().status()} Write ticket: {held} Writers waiting: {queue.waiting}"


def _identity(driver: DriverConnection) -> tuple[int, ...] | None:
    return (fingerprint if driver.frozen else file_identity)(driver.path)


def _end_observed(proxied: Any, driver: DriverConnection) -> None:
    if driver.suspect:
        proxied.invalidate()
    else:
        proxied._close_special(transaction_reset=True)
