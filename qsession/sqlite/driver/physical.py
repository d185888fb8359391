"""DriverConnection: one physical connection, and how a function runs in its thread.

It is SQLAlchemy's adapter around an ``aiosqlite.Connection``, so "connect" listeners find what
they know, with three ways of its own to run a function of the plain ``sqlite3.Connection``: wait
for it, wait for it through a cancellation, or leave it there. Functions run in the order they were
given, one at a time.
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

from qsession.sqlite.driver.job import Job
from qsession.sqlite.driver.pace import STEPS
from qsession.sqlite.driver.setup import FULL, Sync
from qsession.sqlite.processes import fork
from qsession.waiting.handoff import running_loop, to_end

INTERRUPT_AGAIN = 0.005
"""Seconds after which a cancelled statement that still runs is interrupted again."""

_clock_of: Any = getattr(time, "pthread_getcpuclockid", None)  # not on macOS and Windows
T = TypeVar("T")
Done = Callable[[], None]


class DriverConnection(AsyncAdapt_aiosqlite_connection):
    """One physical connection to the database file."""

    thread_only = False
    """Whether it was made by the application so that nothing of it runs on the loop."""
    frozen = False
    """Whether it was opened as one whose file nobody changes: see :mod:`.frozen`."""
    identity: tuple[int, ...] | None = None
    """Device and inode of the file it was opened on, and more where it must not change."""
    raw: sqlite3.Connection
    """What is open since :meth:`open`. On the loop it is used only while its thread is quiet."""
    path = ""
    """The file as SQLite names it; empty where there is none."""
    is_ready = False
    """Whether it was made ready after its "connect" listeners."""
    sync = Sync.SQLITE
    """Who sees to it that its commits are on the disk."""
    syncer: Any = None
    """What makes them durable, where the fsync is shared."""
    query_only: bool | None = False
    """What ``PRAGMA query_only`` is set to by us; None where that is not known."""
    only_reads = False
    """Whether a listener has set ``PRAGMA query_only``: then it stays as it is."""
    has_attached = False
    """Whether the application, or a listener, has attached other files."""
    in_its_own_way = False
    """Whether the application has attached the file to itself."""
    inherited = False
    """Whether this is a forked child, and the connection is its parent's."""
    closing = False
    """Whether it is to be closed: its thread has been told to."""
    cancelled: asyncio.CancelledError | None = None
    """What came while :meth:`close` waited. Raised there, SQLAlchemy would log it as a failure."""
    suspect = False
    """Set after an error that its cache may not survive: it is closed instead of used again."""

    def __init__(self, dbapi: Any, connection: Any) -> None:
        super().__init__(dbapi, connection)
        self._jobs: deque[None] = deque()  # one for each function that the thread has not done
        self._job: Job | None = None
        self._switching = threading.Lock()
        fork.connections.add(self)

    def open(self) -> None:
        """Start the thread and open the connection in it, to the end; if that fails, stop it.

        Not aiosqlite's way: its thread breaks when it has to tell a loop that is closed.
        """
        connection = self._connection
        connection._thread.daemon = True  # an engine never disposed of lets the interpreter end
        connection._thread.start()
        try:
            await_only(to_end(self._send(partial(_open, connection)).future))
        except BaseException:
            connection._tx.put_nowait((None, connection.stop))
            raise
        self.raw = connection._conn

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(raw, *args)`` in the thread and wait for it.

        Cancelled: the function is taken back if it has not begun, else its statement is
        interrupted; neither is waited for.
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
        """Whether the thread has nothing to do, so that a statement may run on the loop."""
        return not (self._jobs or self.thread_only)

    def is_left_open(self) -> bool:
        """Whether SQLite has a transaction, and nothing that would end it is under way."""
        try:
            return self.quiet and not self.suspect and bool(self.raw.in_transaction)
        except sqlite3.ProgrammingError:  # it is closed
            return False

    def run_here(self, function: Callable[..., T], *args: Any, budget: float | None = None) -> T:
        """Run ``function(raw, *args)`` on the loop, with the thread quiet.

        ``budget`` seconds, where given, are all it gets: then SQLite breaks it off with
        SQLITE_INTERRUPT, and a write with its whole transaction
        (https://sqlite.org/c3ref/interrupt.html).
        """
        raw = self.raw
        if budget is None:
            return function(raw, *args)
        deadline = time.perf_counter() + budget
        # True interrupts: https://sqlite.org/c3ref/progress_handler.html
        raw.set_progress_handler(lambda: time.perf_counter() > deadline, STEPS)
        try:
            return function(raw, *args)
        finally:
            raw.set_progress_handler(None, 0)

    def lend(self, patience: float, autocommit: bool, writes: bool) -> None:
        """Let the application use it by itself, as any connection of ``sqlite3``.

        Unless in ``autocommit`` it begins transactions by itself, with IMMEDIATE, so that it never
        has to ask for the lock in the middle (https://docs.python.org/3/library/sqlite3.html,
        "Transaction control"). It waits for locks inside of SQLite, ``patience`` seconds at the
        most.
        """
        if not (autocommit or self.raw.in_transaction):
            self.raw.isolation_level = "IMMEDIATE"
        milliseconds = int(min(patience, 1_000_000.0) * 1000)
        self.post(lambda raw: raw.execute(f"PRAGMA busy_timeout={milliseconds}"))
        if self.sync is Sync.SHARED and not self.raw.in_transaction:
            self.post(lambda raw: raw.execute(f"PRAGMA main.synchronous={FULL}"))
            self.sync = Sync.SQLITE  # what is committed there, nobody hears of
        if not self.only_reads:
            self.let_write(writes)

    def let_write(self, writes: bool) -> None:
        """Set ``PRAGMA query_only`` for the application, without waiting."""
        value = "OFF" if writes else "ON"
        self.post(lambda raw: raw.execute(f"PRAGMA query_only={value}"))
        self.query_only = not writes

    def run_to_end(self, function: Callable[..., T], *args: Any, hurry: bool = False) -> T:
        """Run ``function(raw, *args)`` and wait for its end; a cancellation is raised after it.

        ``hurry``: what the application runs on the connection by itself, and waits for no more,
        is interrupted.
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
        """Seconds of processor time that the thread has used; 0 where the system does not tell.

        Beside a busy loop the clock says nothing: the thread waits for Python's interpreter lock.
        """
        ident = self._connection._thread.ident
        if _clock_of is None or ident is None:
            return 0.0
        try:
            return time.clock_gettime(_clock_of(ident))
        except OSError:  # it has ended
            return 0.0

    def interrupt(self) -> None:
        """Break off what the thread runs for a task that waits for it, and nothing that is posted.

        https://sqlite.org/c3ref/interrupt.html: a write that is broken off inside a transaction
        rolls the whole transaction back.
        """
        self._interrupt_until(lambda: self._job is None, None)

    def _take_back(self, job: Job) -> None:
        """Never begin a function, or interrupt it until it has ended.

        Once is not enough: a statement that is only about to start would not notice.
        """
        with self._switching:
            job.taken_back = True
        self._interrupt_until(lambda: self._job is not job, job.loop)

    def _interrupt_until(
        self, over: Callable[[], bool], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        """Interrupt now, and again and again until ``over()``; without a loop, once has to do."""
        with self._switching:
            if over():
                return
            with suppress(ValueError, sqlite3.ProgrammingError):  # it is closed already
                self.raw.interrupt()
        if loop is not None and not loop.is_closed():
            loop.call_later(INTERRUPT_AGAIN, self._interrupt_until, over, loop)

    def close(self) -> None:
        """Close the connection and end its thread; waits where there is a loop to wait in.

        Cancelled: it is closed, and ``cancelled`` is what the caller is to raise.
        """
        if not self._connection._running:
            return
        self.closing = True
        try:
            if in_greenlet():
                self.run_to_end(lambda raw: raw.close())  # of whatever SQLite library
        except asyncio.CancelledError as error:
            self.cancelled = error
        finally:
            # stop() makes a future of the running loop, which may be closed before it is resolved;
            # in the connection's own thread there is no loop, and so no future to lose.
            self.post(self._stop)

    def terminate(self) -> None:
        """Close without waiting; whatever runs is broken off, a listener's statement included."""
        self.closing = True
        self.post(self._stop)
        self._interrupt_until(lambda: not self._connection._running, running_loop())

    def end(self, patience: float) -> None:
        """Close it and wait for that in this thread, ``patience`` seconds at the most.

        For a process that is about to fork; nobody may use the connection.
        """
        self.post(self._stop)
        self._connection._thread.join(patience)

    @property
    def is_open(self) -> bool:
        """Whether SQLite has the file open, or is about to open it."""
        return self._connection._running or self._connection._connection is not None

    def leave_to_parent(self) -> None:
        """In a forked child: have nothing to do with it from now on."""
        self._switching = threading.Lock()  # a thread that is not here any more may have it
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
            self.suspect = True  # what it was to clean up may still be there
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
        """In the thread. The loop may be closed by then; there is nobody left to tell."""
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
    """Run what is in the box, in the thread, which refers to its last function until the next.

    Nothing may be left in there: rows, or this connection, which would never be closed if nobody
    disposes of the engine.
    """
    box.pop()()
