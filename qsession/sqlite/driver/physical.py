"""DriverConnection: one physical connection, and how a function runs in its thread.

It is SQLAlchemy's adapter around an ``aiosqlite.Connection``, so "connect" listeners find the usual
interface. It adds three ways to run a function of the plain ``sqlite3.Connection`` in the thread:
wait for it, wait for it even if cancelled, or do not wait. Functions run one at a time, in order.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from qsession import errors
from qsession.sqlite.driver.job import Job
from qsession.sqlite.driver.setup import FULL, Sync
from qsession.sqlite.processes import fork
from qsession.waiting.handoff import running_loop, to_end

SUSPECT = frozenset(
    (errors.SQLITE_IOERR, errors.SQLITE_CORRUPT, errors.SQLITE_CANTOPEN, errors.SQLITE_NOTADB)
)
"""After these errors a connection is not used again."""
INTERRUPT_AGAIN = 0.005
"""Seconds after which a cancelled statement that still runs is interrupted again."""

_clock_of: Any = getattr(time, "pthread_getcpuclockid", None)  # not on macOS and Windows
T = TypeVar("T")
Done = Callable[[], None]


class DriverConnection(AsyncAdapt_aiosqlite_connection):
    """One physical connection to the database file."""

    thread_only = False
    """Whether the application made it in a way that does not allow its use on the loop."""
    frozen = False
    """Whether it was opened as immutable: see :mod:`qsession.sqlite.files.read_only`."""
    identity: tuple[int, ...] | None = None
    """Device and inode of its file, and more if the file must not change."""
    raw: sqlite3.Connection
    """The open connection. The loop uses it only while the thread is idle."""
    path = ""
    """The file as SQLite names it; empty if there is none."""
    is_ready = False
    """Whether it was set up after its "connect" listeners."""
    sync = Sync.SQLITE
    """How its commits reach the disk."""
    syncer: Any = None
    """The syncer of its commits, if fsyncs are shared."""
    query_only: bool | None = False
    """The value of ``PRAGMA query_only`` that qsession has set; None if unknown."""
    only_reads = False
    """Whether a listener has set ``PRAGMA query_only``, which then stays."""
    has_attached = False
    """Whether the application or a listener has attached other files."""
    in_its_own_way = False
    """Whether the application has attached the connection's own file."""
    inherited = False
    """Whether this is a forked child, and the connection belongs to its parent."""
    closing = False
    """Whether its thread was told to close it."""
    cancelled: asyncio.CancelledError | None = None
    """A cancellation during :meth:`close`. If close() raised it, SQLAlchemy would log a failure."""
    written: Any = None
    """The tables that statements write on it, once a commit of it was observed."""
    being_set = False
    """Whether a statement sets something on it that is not recorded yet. If it is given back
    meanwhile, nobody knows what to restore, and it is closed.
    """
    suspect = False
    """Set after an error that may have damaged its state: it is closed instead of used again."""

    def __init__(self, dbapi: Any, connection: Any) -> None:
        super().__init__(dbapi, connection)
        self._jobs: deque[None] = deque()  # one entry for each function not yet finished
        self._job: Job | None = None
        self._switching = threading.Lock()
        fork.connections.add(self)

    def open(self) -> None:
        """Start the thread and open the connection in it, even if cancelled; stop it on an error.

        It does not use aiosqlite's own method, whose thread fails if the loop is closed.
        """
        connection = self._connection
        connection._thread.daemon = True  # so that the interpreter can end without dispose()
        connection._thread.start()
        try:
            await_only(to_end(self._send(partial(_open, connection)).future))
        except BaseException:
            connection._tx.put_nowait((None, connection.stop))
            raise
        self.raw = connection._conn

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(raw, *args)`` in the thread and wait for it.

        If cancelled, a function that has not begun is dropped, else its statement is interrupted.
        Neither is waited for.
        """
        job = self._submit(function, *args)
        try:
            return await_only(job.future)  # type: ignore[no-any-return]
        except BaseException:
            if not job.future.done() or job.future.cancelled():
                self._take_back(job)
            raise

    @property
    def quiet(self) -> bool:
        """Whether the thread is idle, so that a statement may run on the loop."""
        return not (self._jobs or self.thread_only)

    def is_left_open(self) -> bool:
        """Whether SQLite has a transaction, and no function in the thread may end it."""
        try:
            idle = not (self._jobs or self.thread_only or self.suspect)
            return idle and self.raw.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return False

    def lend(self, patience: float, autocommit: bool, writes: bool) -> None:
        """Let the application use it directly, like any connection of ``sqlite3``.

        Except under ``autocommit``, ``sqlite3`` begins transactions itself, with IMMEDIATE, so that
        it never needs the lock in the middle of one
        (https://docs.python.org/3/library/sqlite3.html, "Transaction control"). It waits for locks
        inside SQLite, for up to ``patience`` seconds.
        """
        if not (autocommit or self.raw.in_transaction):
            self.raw.isolation_level = "IMMEDIATE"
        milliseconds = int(min(patience, 1_000_000.0) * 1000)
        self.post(lambda raw: raw.execute(f"PRAGMA busy_timeout={milliseconds}"))
        if self.sync is Sync.SHARED and not self.raw.in_transaction:
            self.post(lambda raw: raw.execute(f"PRAGMA main.synchronous={FULL}"))
            self.sync = Sync.SQLITE  # commits of the application are not reported
        if not self.only_reads:
            self.let_write(writes)

    def let_write(self, writes: bool) -> None:
        """Set ``PRAGMA query_only`` for the application, without waiting."""
        value = "OFF" if writes else "ON"
        self.post(lambda raw: raw.execute(f"PRAGMA query_only={value}"))
        self.query_only = not writes

    def run_to_end(self, function: Callable[..., T], *args: Any, hurry: bool = False) -> T:
        """Run ``function(raw, *args)`` and wait for its end; a cancellation is raised afterwards.

        ``hurry``: interrupt statements that the application still runs on the connection.
        """
        job = self._submit(function, *args)
        if hurry:
            begun = partial(getattr, job, "begun")
            job.loop.call_later(INTERRUPT_AGAIN, self._interrupt_until, begun, job.loop)
        return await_only(to_end(job.future))  # type: ignore[no-any-return]

    def post(self, function: Callable[..., Any], *args: Any, done: Done | None = None) -> None:
        """Run ``function(raw, *args)`` without waiting; then ``done()``, in the thread as well.

        Safe from any thread, without a loop, and from the garbage collector.
        """
        if not self._connection._running:
            if done is not None:
                done()
            return
        self._put(partial(self._run_posted, function, args, done))

    def thread_time(self) -> float:
        """Processor time that the thread has used, in seconds; 0 if the system does not tell.

        If the loop is busy, clock time is misleading: the thread waits for the interpreter lock.
        """
        ident = self._connection._thread.ident
        if _clock_of is None or ident is None:
            return 0.0
        try:
            return time.clock_gettime(_clock_of(ident))
        except OSError:  # the thread has ended
            return 0.0

    def interrupt(self) -> None:
        """Interrupt the function that a task waits for, but not a posted one.

        An interrupted write rolls back the whole transaction
        (https://sqlite.org/c3ref/interrupt.html).
        """
        self._interrupt_until(lambda: self._job is None, None)

    def _take_back(self, job: Job) -> None:
        """Drop a function that has not begun, or interrupt it until it has ended.

        One interrupt is not enough: it has no effect on a statement that is about to start.
        """
        with self._switching:
            job.taken_back = True
        self._interrupt_until(lambda: self._job is not job, job.loop)

    def _interrupt_until(
        self, over: Callable[[], bool], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        """Interrupt repeatedly until ``over()`` is true; without a loop, only once."""
        with self._switching:
            if over():
                return
            with suppress(ValueError, sqlite3.ProgrammingError):  # it is closed already
                self.raw.interrupt()
        if loop is not None and not loop.is_closed():
            loop.call_later(INTERRUPT_AGAIN, self._interrupt_until, over, loop)

    def close(self) -> None:
        """Close the connection and end its thread. In a greenlet it waits for that.

        If cancelled, it is closed, and the caller must raise ``cancelled``.
        """
        if not self._connection._running:
            return
        self.closing = True
        try:
            if in_greenlet():
                self.run_to_end(lambda raw: raw.close())  # of any SQLite library
        except asyncio.CancelledError as error:
            self.cancelled = error
        finally:
            # stop() creates a future of the running loop, which may be closed before the future is
            # resolved. In the connection's thread there is no loop, so it creates no future.
            self.post(self._stop)

    def terminate(self) -> None:
        """Close without waiting, and interrupt what runs, even a listener's statement."""
        self.closing = True
        self.post(self._stop)
        self._interrupt_until(lambda: not self._connection._running, running_loop())

    def end(self, patience: float) -> None:
        """Close it and wait for that in this thread, for up to ``patience`` seconds.

        For a process that is about to fork. The connection must not be in use.
        """
        self.post(self._stop)
        self._connection._thread.join(patience)

    @property
    def is_open(self) -> bool:
        """Whether SQLite has the file open, or is about to open it."""
        return self._connection._running or self._connection._connection is not None

    def leave_to_parent(self) -> None:
        """In a forked child: do not use it any more."""
        self._switching = threading.Lock()  # a thread of the parent may hold the old one
        self._connection._running = False
        self.inherited = self.thread_only = True

    def _stop(self, raw: sqlite3.Connection) -> None:
        if self._connection._running:
            self._connection.stop()

    def _run_posted(
        self, function: Callable[..., Any], args: tuple[Any, ...], done: Done | None
    ) -> None:
        try:
            function(self.raw, *args)
        except Exception:
            self.suspect = True  # the cleanup may be incomplete
        finally:
            self._jobs.pop()
            if done is not None:
                done()

    def _submit(self, function: Callable[..., Any], *args: Any) -> Job:
        if not self._connection._running:
            raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
        return self._send(partial(function, self.raw, *args))

    def _send(self, function: Callable[[], Any]) -> Job:
        job = Job(function)
        self._put(partial(self._run_job, job))
        return job

    def _put(self, function: Done) -> None:
        self._jobs.append(None)
        self._connection._tx.put_nowait((None, partial(_run_once, [function])))

    def _run_job(self, job: Job) -> None:
        """In the thread. If the loop is closed by then, the result is dropped."""
        result, error = None, None
        try:
            with self._switching:  # from now on it can be interrupted
                job.begun = True
                if not job.taken_back:
                    self._job = job
            if self._job is job:
                result = job.function()
        except BaseException as raised:
            error = raised
        with self._switching:
            self._job = None
        self._jobs.pop()
        with suppress(RuntimeError):
            job.loop.call_soon_threadsafe(job.settle, result, error)


def _open(connection: Any) -> None:
    connection._connection = connection._connector()


def _run_once(box: list[Done]) -> None:
    """Run the function in the box, in the thread, which refers to the box until the next one.

    The box must be empty afterwards. A reference to rows or to the connection would keep them alive
    if the engine is not disposed of.
    """
    box.pop()()
