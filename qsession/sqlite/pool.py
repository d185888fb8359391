"""WriteQueuePool: a bounded pool of connections, each of which may write, and the write queue."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
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
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.pace import Pace
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.driver.setup import make_ready
from qsession.sqlite.durability.checkpoint import Checkpointer
from qsession.sqlite.durability.syncer import Syncer, syncer_of
from qsession.sqlite.files.explain import explain, warn_of_old_wal
from qsession.sqlite.files.filesystem import file_identity
from qsession.sqlite.files.read_only import fingerprint
from qsession.sqlite.processes import fork, status
from qsession.sqlite.queue.admission import Admission
from qsession.sqlite.queue.write_queue import WriteQueue
from qsession.sqlite.transaction.transaction import Transaction
from qsession.statistics import Stats
from qsession.waiting.callers import name_of
from qsession.waiting.connection_queue import ConnectionQueue
from qsession.waiting.handoff import running_loop, this_loop, to_end
from qsession.waiting.pacing import turns
from qsession.waiting.ticket import Ticket, TicketQueue, TicketState

LOOK_AGAIN = 0.01
"""Seconds between two checks whether the file still exists."""
KEEP_IDLE = 30.0
"""Seconds after which an idle connection beyond ``pool_size`` may be closed."""


class WriteQueuePool(AsyncAdaptedQueuePool):
    """The class of ``engine.pool``.

    ``pool_size`` and the other arguments have the same meaning as for SQLAlchemy's own pool. One
    more connection is reserved for the holder of the ticket, so that the holder never waits for
    transactions that wait for the ticket. The same connection is used for most writes, so its page
    cache is warm.

    Invariant: at most ``pool_size + max_overflow + 1`` connections are open, and one more while
    somebody observes the file.
    """

    _queue_class = ConnectionQueue
    _sqla_logger_namespace = "sqlalchemy.pool.impl.WriteQueuePool"
    _dialect: Any  # a QSessionDialect
    _pool: ConnectionQueue

    def __init__(self, creator: Any, *, keeps_idle: bool = True, **kw: Any) -> None:
        super().__init__(creator, **kw)
        create = self._invoke_creator
        self._invoke_creator = lambda record: self._dialect.dbapi.adopt(create(record))
        self.settings: Settings = self._dialect.settings
        self._keeps_idle = keeps_idle
        """False replaces NullPool: a connection is closed when its transaction ends."""
        self._replaced = False
        self.pace = Pace(self.settings.inline)
        self.isolation_level: str | None = self._dialect._on_connect_isolation_level
        """The ``isolation_level`` of the engine."""
        self.noted: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
        """What "connect" listeners have stored for the last opened connection: its ``info`` and
        ``record_info``."""
        self._looked: tuple[float, object] = (0.0, None)
        """When the file was last checked, and its identity then."""
        self._asking = threading.local()
        self._begin()
        fork.pools.add(self)

    def _begin(self) -> None:
        """Set the initial state, also again in a forked child."""
        self._pool.limit = 0
        self._pool.use_lifo = True  # the last one used has the warmest cache; others may be closed
        self._reserved = ConnectionQueue()
        self._reserve: Any = self._create_connection(reserved=True)
        self._reserved.put(self._reserve)
        self._resting: dict[Transaction, Lease] = {}
        self._leases: set[Lease] = set()
        """The leases in use. Without these references, the garbage collector could close the
        connection of an unclosed session before it collects the session.
        """
        self._initialized = False
        self._initializing = TicketQueue()
        self._syncer: Syncer | None = None
        self.gathers: int | None = None
        """The thread whose loop runs lone writes now. It triggers the sync itself afterwards."""
        self.admission = Admission()
        external = self.settings.checkpoints == "external"
        warn = self._warn_of_growth if external else self._warn_of_wal
        self.checkpointer = Checkpointer(warn, self.settings.wal_warn, external)
        self.write_queue = WriteQueue(self.settings, self.database)

    @property
    def database(self) -> str:
        """The name of the database in messages."""
        return str(self._dialect.database)

    def reset(self, connection: RoutedConnection) -> None:
        """End the transaction of a closed connection, according to ``pool_reset_on_return``."""
        if self._reset_on_return is ResetStyle.reset_commit:
            self._dialect.do_commit(connection)
        elif self._reset_on_return is ResetStyle.reset_rollback:
            self._dialect.do_rollback(connection)

    def connect(self) -> PoolProxiedConnection:
        """A connection without a physical connection yet.

        The first call opens a physical one. So it raises an error if the database cannot be opened,
        and SQLAlchemy's dialect is initialized before the first statement is compiled.
        """
        if not self._initialized:
            self._initialize()
        connection = RoutedConnection(self)
        if in_greenlet():
            connection.transaction.runner.admit()
        return connection

    def _initialize(self) -> None:
        ticket = Ticket(self)
        state = self._initializing.take(ticket)
        if state is not TicketState.HELD:
            timeout = self.settings.queue_timeout
            state = await_only(self._initializing.wait(ticket, timeout))
        if state is not TicketState.HELD:
            raise PoolTimeout(f"{self.database!r} could not be opened within {timeout:g} s")
        try:
            if not self._initialized:
                self.lease(holder=False).end()
                self.settings = self._dialect.settings  # its timeout is known by now
                self._initialized = True
                status.serve()
        finally:
            self._initializing.release(ticket)

    # Connections for transactions.

    @property
    def reserve_is_kept(self) -> bool:
        """Whether the reserved connection stays with a user that has set something on it."""
        kept: bool = self._reserve.kept
        return kept

    def lease(self, holder: bool, keeps: bool = False) -> Lease:
        """Wait up to ``pool_timeout`` seconds for a connection. In a greenlet.

        ``holder``: for the holder of the ticket, which may use the reserved one. ``keeps``: the
        connection will stay with its user, which gets the reserved one only if there is no other.
        If the pool has listeners, SQLAlchemy's own checkout is used.
        """
        ready = None if keeps else self.ready_lease(holder)
        if ready is not None:
            return ready
        if self._is_observed:
            self._asking.how = holder, keeps
            proxied: Any = super().connect()
            record, fail = proxied._connection_record, proxied.invalidate
            give_back: Callable[[Lease], None] = partial(self._end_observed, proxied)
        else:
            record, give_back = self._record(holder, keeps), self._checkin
            fail = partial(record._checkin_failed, _fairy_was_created=False)
        try:
            self._make_ready(record.get_connection(), record)
        except BaseException as error:
            fail(error)
            raise
        return self._leased(record, give_back)

    @property
    def _is_observed(self) -> bool:
        """Whether the pool has listeners, logging or pre-ping for checkouts."""
        told = self.dispatch
        return bool(self._pre_ping or self.echo or told.checkout or told.checkin or told.reset)

    def ready_lease(self, holder: bool) -> Lease | None:
        """As :meth:`lease`, if that needs no wait; else None."""
        if self._is_observed or self._recycle > -1:
            return None
        record = (holder and self._reserved.take()) or self._pool.take()
        if record is None:
            return None
        driver, since = record.dbapi_connection, record.starttime
        past = self._invalidate_time > since or record._soft_invalidate_time > since
        if driver is None or past or not (driver.is_ready and driver.quiet):
            self._do_return_conn(record)
            return None
        return self._leased(record, self._checkin)

    def spare(self) -> DriverConnection:
        """A new connection beside those of the pool, for observers. In a greenlet.

        The caller closes it by ``terminate()``.
        """
        record: Any = self._create_connection()
        driver: DriverConnection = record.get_connection()
        try:
            self._make_ready(driver, record)
        except BaseException:
            driver.terminate()
            raise
        return driver

    def idle_lease(self) -> Lease | None:
        """An idle connection, without waiting; None if there is none."""
        record = self._pool.pick(_is_sound)
        return None if record is None else self._leased(record, self._checkin)

    def _leased(self, record: Any, give_back: Callable[[Lease], None]) -> Lease:
        lease = record.lease = Lease(record, give_back)
        self._leases.add(lease)
        return lease

    def _checkin(self, lease: Lease) -> None:
        self._leases.discard(lease)
        try:
            if lease.driver.suspect:
                lease.record.invalidate()
        finally:  # even after an error of a listener
            self._do_return_conn(lease.record)

    def _end_observed(self, proxied: Any, lease: Lease) -> None:
        self._leases.discard(lease)
        try:
            if lease.driver.suspect:
                proxied.invalidate()
            else:
                proxied._close_special(transaction_reset=True)
        except BaseException as error:  # of a listener; the transaction itself has ended
            record = lease.record
            if record.lease is lease:  # SQLAlchemy has not returned it
                record.fairy_ref = None
                try:
                    with suppress(Exception):  # the listener again: the next checkout replaces it
                        record.invalidate()
                finally:
                    self._do_return_conn(record)
            if not isinstance(error, Exception):
                raise
            self.logger.exception("A pool listener failed; the connection is closed")

    def _create_connection(self, reserved: bool = False) -> ConnectionPoolEntry:
        """A pool record without a connection, which the checkout opens.

        If that fails or is cancelled, the record goes to the next waiting task.
        """
        record: Any = _ConnectionRecord(self, connect=False)
        record.home, record.reserved, record.idle_since = self._pool, reserved, 0.0
        record.lease = None  # that of the transaction that has it
        record.kept = False  # whether it stays with its user past the end of a transaction
        return cast("ConnectionPoolEntry", record)

    def _do_get(self) -> Any:
        """The record for SQLAlchemy's own checkout."""
        how: tuple[bool, bool] = getattr(self._asking, "how", (False, False))
        self._asking.how = False, False
        return self._record(*how)

    def _record(self, holder: bool, keeps: bool) -> Any:
        """A record: the reserved one, an idle one, a new one, a resting one, or else it waits for
        one.
        """
        record = (holder and not keeps and self._reserved.take()) or self._pool.take()
        if record:
            return record
        if self._inc_overflow():
            return self._create_connection()
        self._wake_any()
        queue, joined = self._pool, self._wake_any
        if holder:  # before all others, which may wait for the holder
            queue, joined = self._reserved, self._make_room
        try:
            return self._pool.take() or queue.get(timeout=self._timeout, joined=joined)
        except Empty:
            raise PoolTimeout(
                f"QueuePool limit of size {self.size()} overflow {self._max_overflow} reached, "
                f"connection timed out, timeout {self._timeout:0.2f}. {self.admission.inside} "
                f"transactions on {self.database!r} are open. A transaction that has a snapshot or "
                "has written keeps its connection until it ends",
                code="3o7r",
            ) from None
        finally:
            if holder and not queue.waiting:
                self._put_back_regular()

    def _put_back_regular(self) -> None:
        """No holder waits any more: move other records out of the reserved queue."""
        while (record := self._reserved.pick(lambda each: not each.reserved)) is not None:
            self._pool.put(record)

    @property
    def wants_room(self) -> bool:
        """Whether a holder of the ticket waits for a connection."""
        return self._reserved.waiting > 0

    def _make_room(self) -> None:
        """Give the holder of the ticket the connection of a resting or idle transaction."""
        self._wake_any()
        loop = running_loop()
        for transaction in self.admission:
            if not self.wants_room:
                return
            if transaction.loop is loop:
                transaction.give_up_snapshot()
            elif transaction.loop is not None:
                with suppress(RuntimeError):  # the loop is closed
                    transaction.loop.call_soon_threadsafe(self._ask_for_room, transaction)

    def _ask_for_room(self, transaction: Transaction) -> None:
        """As :meth:`_make_room`, for a transaction of another loop. In that loop."""
        if self.wants_room:
            transaction.give_up_snapshot()

    def _do_return_conn(self, record: Any) -> None:
        if record.home is not self._pool:
            return  # in a forked child, it belongs to the parent
        record.lease = None
        try:
            if self._replaced or not self._keeps_idle:  # this pool will not be disposed of again
                self._shut(record)
        finally:
            if record.reserved or self._reserved.waiting:
                self._reserved.put(record)
            else:
                record.idle_since = time.monotonic()
                self._pool.put(record)
                if self._overflow > 0 and self._pool.qsize() > self._pool.maxsize:
                    self._trim(record.idle_since - KEEP_IDLE)

    def _trim(self, past: float) -> None:
        """Close a connection beyond ``pool_size`` that was idle for long."""
        coldest = self._pool.coldest
        if coldest is None or coldest.idle_since > past:
            return  # asked for each transaction, so not by looking at all of them
        record = self._pool.pick(lambda each: each.idle_since <= past)
        if record is not None:
            self._close(record)

    def _shut(self, record: Any) -> None:
        """Close the connection of a record; a cancellation is raised afterwards."""
        driver: DriverConnection | None = record.dbapi_connection
        try:
            record.close()
        finally:
            record.dbapi_connection = None
        if driver is not None and driver.cancelled is not None:
            raise driver.cancelled

    def _close(self, record: Any) -> None:
        """Close an idle connection that was taken out, so that a new one may be opened."""
        try:
            self._shut(record)
        finally:
            if record.reserved:
                self._reserved.put(record)
            else:
                self._dec_overflow()

    def rest(self, transaction: Transaction, lease: Lease) -> None:
        """Lend a connection to others until its transaction asks for it again."""
        self._resting[transaction] = lease
        if self._pool.waiting or self._reserved.waiting:
            self._wake_any()

    def wake(self, transaction: Transaction) -> Lease | None:
        """The connection that a transaction had when it rested; None if another one has it."""
        return self._resting.pop(transaction, None)

    def _wake_any(self) -> None:
        """Give back the connection of a resting transaction, so that another one gets it."""
        with suppress(StopIteration, RuntimeError):  # there is none, or another thread changes it
            lease = self._resting.pop(next(iter(self._resting)), None)
            if lease is not None:
                lease.end()

    def _make_ready(self, driver: DriverConnection, record: Any) -> None:
        """Set up a connection after its "connect" listeners."""
        if driver.is_ready:
            return
        try:
            found = driver.run(make_ready, self._dialect.shares_syncs)
        except sqlite3.Error as error:
            raise self.explain(error) from error
        driver.path, driver.sync, driver.has_attached, driver.only_reads = found
        if driver.path:
            driver.run(self.checkpointer.set_up, driver.path)
        driver.identity = _identity(driver) if driver.path else None
        fork.refuse_carried(driver.path, driver.identity)
        identity = None if driver.identity is None else driver.identity[:2]
        self.write_queue.on(driver.path, identity)
        self.noted = record.info, record.record_info
        driver.is_ready = True

    def syncer(self, driver: DriverConnection) -> Syncer:
        """The syncer of this file, shared by all engines of the process."""
        if driver.syncer is None:
            assert driver.identity is not None
            driver.syncer = self._syncer = syncer_of(driver.path, driver.identity[:2])
            self.write_queue.queue.on_free = self._sync_if_quiet
        syncer: Syncer = driver.syncer
        return syncer

    @property
    def running_syncer(self) -> Syncer | None:
        """The syncer, if there was a commit."""
        return self._syncer

    def _sync_if_quiet(self) -> None:
        """Sync now that the ticket is free, unless tasks of this loop may commit soon."""
        if self.gathers == threading.get_ident():
            return
        loop = running_loop()
        if loop is not None and turns.of(loop).waiting:
            return
        if self._syncer is not None:
            self._syncer.hurry()

    def check_file(self, driver: DriverConnection, again: bool = False) -> None:
        """Raise if the file was deleted or replaced since the connection was opened.

        In WAL mode SQLite would continue to use the file that no longer has a name
        (https://sqlite.org/howtocorrupt.html, 4.2). The next transaction gets new connections. The
        last result is used again for ``LOOK_AGAIN`` seconds, unless ``again``; the fsync checks the
        file once more.
        """
        if driver.inherited:
            fork.refuse_carried(driver.path, driver.identity)
        now = time.monotonic()
        looked_at, found = self._looked
        if found == driver.identity and now - looked_at < LOOK_AGAIN and not again:
            return
        there = driver.identity and _identity(driver)
        if there == driver.identity:
            self._looked = now, there
            return
        self._invalidate_time = time.time()
        if driver.frozen and there is not None:
            raise sqlite3.OperationalError(
                f"Another user changed the database file {driver.path!r} while this transaction "
                "read it from a read-only folder. Run the transaction again."
            )
        changed = "deleted" if there is None else "replaced by another file"
        raise sqlite3.OperationalError(
            f"The database file {driver.path!r} was {changed} while it was open. This transaction "
            "wrote nothing. The next transaction opens the file again."
            + ("" if there is None else warn_of_old_wal(driver.path))
        )

    def explain(self, error: Exception, query_only: bool = False) -> Exception:
        """The same error with advice for the user."""
        return explain(error, self.database, query_only)

    def _warn_of_wal(self, size: int) -> None:
        """Log which transaction keeps the WAL from being reused, once until it is reused."""
        reading = [(since, each) for each in self.admission if (since := each.snapshot_since)]
        if not reading:
            return
        since, oldest = min(reading, key=lambda each: each[0])
        task = oldest.task
        self.logger.warning(
            "The WAL of %r has grown to %d MiB: it cannot be reused while a transaction reads from "
            "a snapshot that is %.1f s old. Its last statement was %r, in %s. Close readers when "
            "they are done.",
            self.database,
            size >> 20,
            time.monotonic() - since,
            oldest.last_statement,
            "an unknown task" if task is None else name_of(task),
        )

    def _warn_of_growth(self, size: int) -> None:
        """Log that nobody runs the checkpoints that are left to another program."""
        now = time.monotonic()
        ages = [now - since for each in self.admission if (since := each.snapshot_since)]
        reader = f" (the oldest here is {max(ages):.1f} s old)" if ages else ""
        self.logger.warning(
            "The WAL of %r has grown to %d MiB. With checkpoints='external', another program must "
            "move it into the file. If it goes on growing, look whether that program runs, and "
            "whether a long reader is in its way%s. If there is no such program, remove the "
            "setting, or the WAL fills the disk.",
            self.database,
            size >> 20,
            reader,
        )

    def stats(self) -> Stats:
        used = len(self._leases)
        size, in_use = used + self._pool.open + self._reserved.open, used - len(self._resting)
        syncs = 0 if self._syncer is None else self._syncer.syncs
        return self.write_queue.stats(size, in_use, syncs)

    async def drain(self, timeout: float | None) -> None:
        """Refuse new transactions and wait until the present ones have ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not await self.admission.drain(timeout):
            raise QueueTimeout(
                f"drain() timed out: {self.admission.inside} transactions on {self.database!r} "
                f"were still open after {timeout:g} s. {self.write_queue.holder_text()}"
            )
        owner = Transaction(self, lambda: None)
        owner.last_statement = "drain()"
        await self.write_queue.until_free(deadline, owner)

    # The end, and forks.

    def beside(self) -> WriteQueuePool:
        """Another pool for the same file, with the same queue and separate connections."""
        pool = super().recreate()
        assert isinstance(pool, WriteQueuePool)
        pool.write_queue = self.write_queue
        pool.pace = self.pace
        pool._keeps_idle = self._keeps_idle
        return pool

    def recreate(self) -> WriteQueuePool:
        pool = self.beside()
        self._replaced = True
        for record in self._take_idle():  # they came back while the others were closed
            record.invalidate()
            self._put_back(record)
        return pool

    def _take_idle(self) -> list[Any]:
        """Take out all idle records."""
        while self._resting:
            self._wake_any()
        return [*iter(self._pool.take, None), *iter(self._reserved.take, None)]

    def _put_back(self, record: Any) -> None:
        (self._reserved if record.reserved else self._pool).put(record)

    def close_idle(self) -> None:
        """Close idle connections in this thread, because the process is about to fork."""
        self.write_queue.commits.close(fork.PATIENCE)
        for record in self._take_idle():
            fork.close(record)
            self._put_back(record)

    def begin_anew(self) -> None:
        """In a forked child: reset the state, which belongs to the parent, as do its threads."""
        self._pool = self._queue_class(self._pool.maxsize, self._pool.use_lifo)
        self._overflow = -self.size()
        self._overflow_lock = threading.Lock()
        self._begin()

    def dispose(self) -> None:
        """Close the connections that are not in use; a cancellation is raised afterwards.

        The pool can be used again, as after a cancelled ``engine.dispose()``.
        """
        if in_greenlet():
            this_loop()  # raises if there is none
            await_only(to_end(greenlet_spawn(self._dispose)))
        else:
            self._dispose()

    def close(self) -> None:
        """Close idle connections. Those in use still count, unlike in QueuePool.dispose()."""
        while self._resting:
            self._wake_any()
        while record := self._pool.take():
            self._close(record)
        for _ in range(self._reserved.qsize()):
            if record := self._reserved.take():
                self._close(record)

    def _dispose(self) -> None:
        self.close()
        self.logger.info("Pool disposed. %s", self.status())
        if self._syncer is not None:
            self._syncer.close()
        self.write_queue.turn.close()
        self.write_queue.commits.leave(self)
        self._dialect.discard_memory()

    def status(self) -> str:
        queue = self.write_queue.queue
        held = "held" if queue.holder is not None else "free"
        return f"{super().status()} Write ticket: {held} Writers waiting: {queue.waiting}"


def _is_sound(record: Any) -> bool:
    """Whether its connection is open, and no error may have damaged its state."""
    driver: DriverConnection | None = record.dbapi_connection
    return driver is not None and not driver.suspect


def _identity(driver: DriverConnection) -> tuple[int, ...] | None:
    return (fingerprint if driver.frozen else file_identity)(driver.path)
