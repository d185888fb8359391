"""Transaction: what each statement of a connection does, and how its transaction ends.

A transaction takes a connection of the pool with its first statement and keeps it until its end.
Before its first write it may lose the ticket at any moment; after that, it has SQLite's lock.
:func:`.decide.decide` decides what a statement needs; this class does it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any, Protocol

from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from qsession import errors, events
from qsession.config import Access, Settings
from qsession.sqlite.changes.commits import Witness
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.pace import Pace
from qsession.sqlite.driver.physical import SUSPECT, DriverConnection
from qsession.sqlite.driver.setup import Sync
from qsession.sqlite.durability.checkpoint import When
from qsession.sqlite.processes.owners import shorten
from qsession.sqlite.queue.admission import Admission
from qsession.sqlite.queue.hold_limit import HoldLimit
from qsession.sqlite.queue.prediction import Guess, call_site
from qsession.sqlite.queue.want import Want
from qsession.sqlite.transaction import messages, sending
from qsession.sqlite.transaction.commit import Commit, Files
from qsession.sqlite.transaction.conflict import as_stale_data, conflict
from qsession.sqlite.transaction.decide import (
    Action,
    Begin,
    Instead,
    State,
    decide_for,
)
from qsession.sqlite.transaction.digest import StreamDigest, error_seen
from qsession.sqlite.transaction.kept import NOTHING_KEPT, Kept, is_so_already
from qsession.sqlite.transaction.plan import plan_of
from qsession.sqlite.transaction.runner import FEW, READY, Runner
from qsession.sqlite.transaction.sending import Outcome, Report, Stage
from qsession.sqlite.transaction.statement import (
    MAY_WRITE,
    SAVEPOINTS,
    Kind,
    Statement,
    changes_rows,
    leaves_wal,
    savepoints_after,
)
from qsession.sqlite.transaction.work import NOTHING_READ, Work
from qsession.waiting.callers import Caller
from qsession.waiting.one_at_a_time import OneAtATime
from qsession.waiting.ticket import Ticket

BUSY_RETRY = 0.005
"""Seconds between two attempts to get a lock that a program without qsession holds."""

_READS = (Kind.READ, Kind.UNKNOWN)
_SETTINGS = (Kind.SET, Kind.SET_IN_FILE)
_PIN = Statement("(the driver's connection)", kind=Kind.WRITE)


class Connections(Files, Protocol):
    """What a transaction needs from its pool."""

    admission: Admission
    pace: Pace
    settings: Settings

    @property
    def wants_room(self) -> bool: ...

    @property
    def reserve_is_kept(self) -> bool: ...

    def lease(self, holder: bool, keeps: bool = False) -> Lease: ...

    def idle_lease(self) -> Lease | None: ...

    def rest(self, transaction: Transaction, lease: Lease) -> None: ...

    def wake(self, transaction: Transaction) -> Lease | None: ...

    def explain(self, error: Exception, query_only: bool = False) -> Exception: ...


class Transaction:
    """The transactions of one :class:`qsession.sqlite.connection.RoutedConnection`."""

    _kept = NOTHING_KEPT
    _last: Lease | None = None
    """A lease on which streams of an earlier transaction may still be open."""
    autocommit = False
    closed = False
    """Whether its connection is closed: nobody would end what a statement begins."""
    last_statement = ""
    in_call = False
    """Whether a thread is in a call that waits, or has not continued after it."""

    def __init__(self, pool: Connections, connection: Callable[[], Any]) -> None:
        self._pool = pool
        self._queue = pool.write_queue
        self._settings = pool.settings
        self.runner = Runner(pool.pace, pool.write_queue.counters)
        self.connection = connection
        """A weak reference to its connection, so that an unclosed one can be collected."""
        self.statements = OneAtATime()
        self.work = Work()

    def __repr__(self) -> str:
        return f"<Transaction {self.work!r}>"

    # The interface for the queue: see Owner.

    @property
    def task(self) -> Caller | None:
        return self.runner.task

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        return self.runner.loop

    @property
    def ticket(self) -> Ticket | None:
        """The ticket that it has, or had until it was taken away."""
        return self.work.ticket

    @property
    def wrote(self) -> bool:
        return self.work.wrote

    @property
    def promised(self) -> bool:
        return self.work.access == "write"

    @property
    def insists(self) -> bool:
        return self.promised or self._queue.prediction.conflicted(self.work.site)

    @property
    def running(self) -> bool:
        return self.statements.running > 0 or self.in_call

    @property
    def activity(self) -> int:
        return self.statements.activity

    @property
    def site(self) -> int | None:
        return self.work.site

    @property
    def locked_by_driver(self) -> bool:
        return self._kept.is_locked

    def reads_for(self) -> tuple[float, float]:
        return self.runner.reads_for()

    @property
    def snapshot_since(self) -> float | None:
        """Since when it has had a snapshot, which keeps the WAL from being reused."""
        return self.work.snapshot_since

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was sent since its last end, and nothing is kept from before."""
        return self.work.access is None and self._kept is NOTHING_KEPT and self._last is None

    @property
    def stack(self) -> Collection[FrameType]:
        """Where a thread stood when it took the ticket: frames of the application.

        The connection has them, as they may refer to it: nothing of it may be kept by the queue.
        """
        return getattr(self.connection(), "stack", ())

    @property
    def ends_at_once(self) -> bool:
        """Whether its end sends nothing and does not wait, because it has not written and has no
        snapshot. Then any thread may end it.
        """
        work, kept = self.work, self._kept is not NOTHING_KEPT or self._last is not None
        free = work.state in (State.IDLE, State.READING) and work.lease is None
        return free and not (kept or work.limit is not None or self.statements.running)

    # Statements.

    def execute(self, statement: Statement, options: Any) -> Outcome:
        """Run one statement, on the loop or in the thread. In a greenlet.

        Raises the errors of SQLite and of :mod:`qsession.errors`. If cancelled, the transaction is
        rolled back in the background, and its ticket and connection are given back.
        """
        statements, queue = self.statements, self._queue
        if statements.running:
            if not in_greenlet():
                await_only(READY)  # raises MissingGreenlet
            statements.wait()
        if self.closed:
            raise messages.closed(statement.sql)
        failure = self.work.failure
        if failure is not None:
            if statement.kind is Kind.ROLLBACK_TO:
                return _nothing_sent()  # a session rolls back each of its savepoints
            raise failure
        self.runner.use_in_greenlet()
        statements.begin()
        self.last_statement = statement.sql
        try:
            if self.work.access is None:
                self.work.take_options(options, self._settings)
            if self._kept is not NOTHING_KEPT:
                self._look_at_kept(self._kept)
            if statement.kind in MAY_WRITE and (
                queue.commits.observed or self.work.sent is not None
            ):
                self.work.note(statement.sql, statement.sample)
            action = self._decide(statement)
            if action.instead is None:
                outcome = self._perform(action, statement)
            else:
                outcome = self._do_instead(action.instead, statement)
            if self.autocommit:
                self._follow_savepoints(statement)
            return outcome
        except BaseException as error:
            self._clean_up_after(error, statement)
            raise
        finally:
            statements.end()
            if self.work.state is State.SNAPSHOT and self._pool.wants_room:
                self.give_up_snapshot()
            if queue.queue.waiting and queue.watch.places and self.work.holds:
                queue.watch.look_soon()

    def _look_at_kept(self, kept: Kept) -> None:
        """Before a statement: what the application has done on the connection that it keeps."""
        if kept.lost is not None:
            raise errors.QSessionError(kept.lost)
        if kept.lent:
            self._look_at_driver()
        if kept.postponed and not self.work.in_transaction:
            kept.set_back_postponed()

    def _witness(self, sent: dict[str, Any] | None) -> Witness | None:
        """What tells the observers of the next commit; None if there are none.

        A commit on a connection on which the application can do anything is found by the next look.
        """
        lease, commits = self.work.lease, self._queue.commits
        if not commits.observed or lease is None or self._kept.lent:
            return None
        return Witness(commits, lease.driver, sent if self._kept is NOTHING_KEPT else None)

    def _decide(self, statement: Statement) -> Action:
        work, kind, alone, writes_mostly = self.work, statement.kind, False, False
        if self.autocommit:
            alone = not (work.by_hand or work.savepoints or self._kept.is_locked)
        statement.alone = alone
        if work.state is State.IDLE and work.access == "auto" and kind in _READS and not alone:
            if work.site is None:
                work.site = call_site(self.task)
                work.guess = self._queue.prediction.guess(work.site)
            writes_mostly = work.guess is Guess.TICKET_FIRST
        return decide_for(
            kind,
            statement.words,
            statement.nowait,
            work.state,
            work.access,
            work.snapshot,
            work.by_hand,
            alone,
            writes_mostly,
            work.locks,
            work.savepoints,
        )

    def _do_instead(self, instead: Instead, statement: Statement) -> Outcome:
        work = self.work
        if instead is Instead.COMMIT:
            self.commit()
        elif instead is Instead.ROLLBACK:
            self.rollback(by_statement=True)
        elif instead is Instead.BEGIN:
            work.by_hand = work.snapshot = True
            work.turned = frozenset()
        elif instead is Instead.REMEMBER:
            assert statement.words is not None
            work.remember(statement.sql, statement.words)
        elif instead is Instead.REFUSE_WRITE or not self._has_no_effect(instead, statement):
            raise messages.refusal(instead, statement.sql)
        return _nothing_sent()

    def _has_no_effect(self, instead: Instead, statement: Statement) -> bool:
        """Whether a PRAGMA that works only outside a transaction changes nothing, or only later."""
        work, words, kept = self.work, statement.words, self._kept
        if words is not None and work.lease is not None and is_so_already(work.lease.driver, words):
            kept.postponed.pop(words.name, None)
            return True
        return instead is Instead.REFUSE_SETTING and kept.restores(statement, work.turned)

    def _follow_savepoints(self, statement: Statement) -> None:
        """Under AUTOCOMMIT the outermost savepoint acts as BEGIN, and its RELEASE as COMMIT."""
        work, words = self.work, statement.words
        if work.by_hand or words is None or words.kind not in SAVEPOINTS:
            return
        if work.state is State.LOCKED:
            work.savepoints = savepoints_after(work.savepoints, words)
        if not work.savepoints:
            try:
                self.commit()
            except BaseException:
                self.rollback()  # the savepoint no longer exists
                raise

    def _perform(self, action: Action, statement: Statement) -> Outcome:
        self._pool.admission.enter(self)
        while True:
            if statement.alone and statement.kind is Kind.WRITE:
                statement.stream = None  # SQLite commits it when its rows have been read
            if action.want is not Want.NO:
                lease = self._come_by_both(action, statement)
            else:
                lease = self.work.lease or self._come_by_connection(action.keeps)
            if not self.work.in_transaction:
                self._pool.check_file(lease.driver)
            if statement.many and len(statement.parameters) > FEW:
                report = self._run_in_slices(action, statement, lease)
            elif statement.kind in _SETTINGS:
                report = self._run_setting(action, statement, lease)
            else:
                report = self._run(action, statement, lease)
            if report.error is None or not (report.refused and statement.kind is Kind.UNKNOWN):
                return self._settle(action, statement, lease, report)
            statement.kind = Kind.WRITE  # SQLite refused it under PRAGMA query_only
            action = self._decide(statement)
            if action.instead is not None:
                return self._do_instead(action.instead, statement)

    # The ticket and the connection.

    def _come_by_both(self, action: Action, statement: Statement) -> Lease:
        """Get the ticket, if the action wants it, and a connection: both or neither."""
        while True:
            if action.want is not Want.NO:
                self._come_by_ticket(action, statement)
            had_ticket = self.work.ticket is not None
            lease = self._come_by_connection(action.keeps)
            if not had_ticket or self.work.ticket is not None:
                return lease

    def _come_by_ticket(self, action: Action, statement: Statement) -> None:
        """Get the ticket and the turn on the file, or neither if a SELECT runs without them."""
        work, queue, settings, read = self.work, self._queue, self._settings, self.work.last_read
        if read is not None and time.monotonic() - read >= settings.stall_after:
            work.idled = True
        elif work.place is not None:
            queue.watch.places.note(work.place, long=False)
            work.place = None
        while True:
            ticket = work.ticket
            if ticket is not None:
                if ticket.claim() if action.claims else ticket.held:
                    return
                work.ticket, work.idled = None, True  # it was taken away
                work.unlimit()
            reads = statement.kind in _READS
            found = queue.acquire(
                self, settings, action.want, reads, work.priority, self._give_back
            )
            if self.work is not work and found is not None:
                queue.release(found)
            self._check(work)
            if found is None:
                return
            work.ticket = found
            if settings.max_hold is not None and work.limit is None:
                work.limit = HoldLimit(found, settings.max_hold)
            if not action.claims:
                queue.watch.start()
                return

    def taken_away(self, place: int | None, stalled: bool) -> None:
        """Note that its ticket was taken away. If it had stalled, waiting SELECTs of the same call
        site run without the ticket, because their transactions would stall as well.
        """
        work, queue = self.work, self._queue
        work.place = place
        if not stalled:
            return
        work.stalled = True
        queue.watch.places.note(place, long=True)
        if (site := work.site) is not None and queue.prediction.note_stall(site):
            queue.queue.dismiss(lambda ticket: bool(ticket.owner.site == site))

    def _give_back(self) -> None:
        """Give the connection back, with its snapshot. The reads are validated later."""
        work = self.work
        if self._last is not None:
            self._read_streams(self._last)
        lease = work.lease = work.lease or self._pool.wake(self)
        if lease is None:
            return
        self._read_streams(lease)
        if work.state is State.SNAPSHOT:
            lease.tidy(sending.finish_reading)
            work.state = State.READING
        if self._kept is NOTHING_KEPT and self.work is work and not work.stays:
            work.lease, work.version = None, None
            lease.end()

    def give_up_snapshot(self) -> bool:
        """Give its connection to the holder of the ticket, if it idles. Its reads are validated
        when it reads again. False if it cannot. In its loop.
        """
        work, lease = self.work, self.work.lease
        if work.state is not State.SNAPSHOT or work.access == "read" or lease is None:
            return False
        used = lease.streams or not lease.driver.quiet or self._kept is not NOTHING_KEPT
        if self.running or work.holds or used:
            return False
        self._give_back()
        return True

    def _read_streams(self, lease: Lease) -> None:
        """Fetch the rest of open streams, because later statements read a newer state.

        Raises if the transaction was ended meanwhile: another one may have the connection by then.
        """
        work = self.work
        if work.state is not State.LOCKED:
            for stream in list(lease.streams):
                stream.read_to_end()
            self._check(work)

    def _check(self, work: Work) -> None:
        """Raise if the transaction was ended during a wait."""
        if self.work is not work or work.undone:
            raise self._ended_elsewhere()

    def _ended_elsewhere(self) -> Exception:
        """The error for a statement whose transaction was ended while it waited."""
        return self.work.failure or messages.ended_elsewhere(self.last_statement)

    def _come_by_connection(self, keeps: bool) -> Lease:
        """The connection that it has, or had before it rested, or else one of the pool.

        ``keeps``: whether the connection stays with its user. Another user may keep the reserved
        connection and wait for the ticket. So a holder of the ticket must not wait for a
        connection: it gives up the ticket first, and asks again when it has the connection.
        """
        work = self.work
        lease = work.lease or self._kept.lease or self._pool.wake(self)
        if lease is None and self._last is not None:
            lease = self._last.take_up()
        if lease is None:
            work.version = None
            holds = work.holds
            if holds and self._pool.reserve_is_kept:
                self._give_up_ticket()
                work.stays, holds = True, False
            lease = work.lease = self._pool.lease(holds, keeps)
            if self.work is not work:
                lease.end()
                raise self._ended_elsewhere()
        work.lease = lease
        return lease

    def _rest(self, lease: Lease) -> None:
        """Lend the connection to others until the next statement."""
        work = self.work
        used = lease.streams or lease.opened or self._kept is not NOTHING_KEPT
        if not (used or lease.reserved or lease.driver.suspect):
            work.lease = None
            self._pool.rest(self, lease)

    # Running.

    def _run_in_slices(self, action: Action, statement: Statement, lease: Lease) -> Report:
        """Run a long executemany, in slices if it is in a transaction."""
        if action.begin is Begin.NOTHING and self.work.state is not State.LOCKED:
            return self._run(action, statement, lease)
        whole, done, total = Outcome(rowcount=0), 0, len(statement.parameters)
        while True:
            number = self.runner.rows_at_once(statement.sql, first=not done)
            rows = statement.parameters[done : None if number is None else done + number]
            report = self._run(action, replace(statement, parameters=rows), lease)
            if report.outcome is None:
                report.changed = report.changed or whole.changed
                return report
            whole.add(report.outcome)
            done += len(rows)
            if done >= total:
                report.outcome = whole
                return report
            if action.begin is Begin.WRITE:
                self.work.lock()
                action = Action()

    def _run_setting(self, action: Action, statement: Statement, lease: Lease) -> Report:
        """Run a statement that sets something on the connection."""
        work, driver = self.work, lease.driver
        driver.being_set = True
        try:
            return self._run(action, statement, lease)
        finally:
            if self.work is work:
                driver.being_set = False

    def _run(self, action: Action, statement: Statement, lease: Lease) -> Report:
        """Run a statement with what is sent before it; wait for a lock of another program."""
        work, driver = self.work, lease.driver
        upgrades = (
            action.begin is Begin.WRITE
            and work.state is State.SNAPSHOT
            and changes_rows(statement)
            and not (work.log.failed or driver.has_attached)
        )
        deadline: float | None = None
        while True:
            self._check(work)
            plan = plan_of(work, self._kept, lease, action, statement, upgrades)
            if plan.query_only is not None:
                driver.query_only = None  # unknown until the plan has run
            if statement.alone and statement.kind is Kind.WRITE:
                plan.witness = self._witness({statement.sql: statement.sample})
            report = self.runner.run(driver, plan, work, self._check)
            if self.work is not work:
                undone = report.busy or report.code == errors.SQLITE_INTERRUPT
                if statement.alone and statement.kind is Kind.WRITE and not undone:
                    return report  # SQLite has ended it by itself before
                raise self._ended_elsewhere()
            if report.validated:
                self._queue.counters.validations += 1
            if plan.query_only is not None and report.stage is not Stage.BEGIN:
                driver.query_only = plan.query_only
            if driver.query_only and self._kept.lent and self._access != "read":
                driver.let_write(True)  # the application may write on it
            if driver.frozen:
                self._pool.check_file(driver, again=True)
            if report.error is None or not report.busy or work.state is State.LOCKED:
                return report
            if upgrades or lease.streams:  # its snapshot is no longer the latest: validate
                upgrades = False
                self._read_streams(lease)  # each keeps its snapshot until its end
                continue
            if driver.in_its_own_way:
                report.error = messages.in_its_own_way(report.error)
                return report
            if leaves_wal(statement.words):
                report.error = messages.stays_in_wal(report.error, statement.sql)
                return report
            deadline = self._wait_for_lock(deadline, statement.sql)

    # Results.

    def _settle(
        self, action: Action, statement: Statement, lease: Lease, report: Report
    ) -> Outcome:
        """Record what happened; return the outcome or raise the error."""
        work, kind = self.work, statement.kind
        if report.conflict is not None:
            raise self._conflict(report.conflict, statement)
        if report.version is not None and work.log.is_empty:
            work.version = report.version
        was_open = work.in_transaction
        if action.begin is not Begin.NOTHING:
            self._move_on(action, statement, report)
        elif action.logs and work.state is State.IDLE:
            work.state = State.READING
        is_open = work.in_transaction
        if report.in_transaction and not (is_open or self._kept.lent):
            lease.tidy(sending.clean_up)  # no other code would end it
        if report.error is not None:
            self._failed(action, statement, lease, report, was_open)
        outcome = report.outcome
        assert outcome is not None
        seen = outcome.seen
        if outcome.cursor is not None and statement.stream is not None:
            self._check(work)  # another task's rollback closes its cursor
            seen = StreamDigest(outcome.description)
            statement.stream.open(lease, outcome.cursor, seen)
            lease.opened.clear()
        if work.state is State.LOCKED:
            if action.only_begins:
                work.turned = frozenset()
            elif kind is Kind.WRITE or (outcome.changed and kind not in SAVEPOINTS):
                in_file = report.now is None or report.was is not None
                work.note_write(statement, outcome.changed_rows, in_file)
        elif action.logs:
            work.log_read(statement, seen)
        if action.keeps:
            self._keep(lease, statement, report)
        elif kind is Kind.OUTSIDE and not statement.alone:
            self._give_up_ticket()
        if statement.alone and work.state is not State.LOCKED:  # SQLite has committed it
            could = kind is Kind.UNKNOWN or kind is Kind.OUTSIDE
            self._finish(lease, kind is Kind.WRITE or (could and outcome.changed))
        elif was_open and not report.in_transaction and action.begin is not Begin.END:
            self._finish(lease, work.wrote)  # the application sent COMMIT or ROLLBACK
        elif not is_open:
            self._rest(lease)
        if self._settings.durability == "strict" and outcome.description is not None:
            self._wait_for_what_was_read(lease.driver, action)
        return outcome

    def _move_on(self, action: Action, statement: Statement, report: Report) -> None:
        """Move to the state that follows from what was sent before a statement."""
        work = self.work
        if action.begin is Begin.WRITE:
            # Only a statement that writes can violate a constraint. Any other error, such as "no
            # such table", may come before an upgrade has the lock, and others must not wait for it.
            failed = report.error is not None and report.code != errors.SQLITE_CONSTRAINT
            if report.in_transaction and (report.changed or not failed):
                self.work.lock()
                if statement.kind is Kind.BEGIN_WRITE:
                    work.by_hand = True
        elif action.begin is Begin.SNAPSHOT:
            if report.in_transaction:
                work.begin_snapshot()
        elif action.begin is Begin.END and not report.in_transaction:
            work.state = State.READING

    def _failed(
        self, action: Action, statement: Statement, lease: Lease, report: Report, was_open: bool
    ) -> None:
        """Record what became of the transaction, and raise the error of the statement."""
        work, kept, error = self.work, self._kept, report.error
        assert error is not None
        elsewhere = statement.kind in (Kind.SET, Kind.COPY)  # ATTACH, VACUUM INTO: another file
        if report.code in SUSPECT and not elsewhere:
            lease.driver.suspect = True
            kept.lose(messages.settings_lost(self.last_statement, error))
        if was_open and not report.in_transaction and action.begin is not Begin.END:
            self.abandon(messages.dropped(self.last_statement, error))
        elif work.state is State.LOCKED:
            work.wrote = work.wrote or report.changed  # OR FAIL keeps the rows before the error
        elif statement.alone:
            self._finish(lease, report.changed)
        else:
            seen = action.logs or (action.claims and report.lacks)
            if seen and report.stage is Stage.STATEMENT and not statement.many:
                work.log_read(statement, error_seen(error))
                work.log.failed = True
                if work.state is State.IDLE:
                    work.state = State.READING
            if action.claims:
                if work.state is State.SNAPSHOT:  # it may have the lock, so this must end
                    lease.tidy(sending.finish_reading)
                    work.state = State.READING
                self._give_up_ticket()
            if not work.in_transaction:
                self._rest(lease)
        if elsewhere:
            raise error
        # Whether a listener or the application has set PRAGMA query_only.
        raise self._pool.explain(error, lease.driver.only_reads is not kept.sets("query_only"))

    def _conflict(self, reason: str, statement: Statement) -> Exception:
        """End the transaction in a conflict; return the error to raise."""
        self._queue.counters.conflicts += 1
        if events.observers:
            events.emit(events.Conflict(self._queue.place, shorten(statement.sql)))
        if self.work.site is not None:
            self._queue.prediction.note_conflict(self.work.site)
        error = conflict(reason)
        self.abandon(error)
        return as_stale_data(error, statement.context)

    def _wait_for_lock(self, deadline: float | None, sql: str) -> float:
        """Wait a moment for another program's lock. Return the deadline, by :func:`time.monotonic`.

        ``deadline``: what the previous wait returned; None for the first one. Raises
        :class:`QueueTimeout` at the deadline.
        """
        now = time.monotonic()
        if deadline is None:
            deadline = now + self._settings.queue_timeout
        elif now >= deadline:
            self._queue.counters.timeouts += 1
            lease, database = self.work.lease, self._queue.database
            path = database if lease is None else lease.driver.path
            seconds, writers = self._settings.queue_timeout, self._queue.writers_text()
            raise messages.lock_timeout(sql, database, path, seconds, writers)
        await_only(asyncio.sleep(BUSY_RETRY))
        return deadline

    def _clean_up_after(self, error: BaseException, statement: Statement) -> None:
        """After an error: give up a ticket that is not needed; undo a cancelled transaction."""
        work, told = self.work, isinstance(error, sqlite3.Error | errors.QSessionError)
        if statement.kind in _SETTINGS and work.lease is not None and not told:
            work.lease.driver.suspect = True  # it may have been set, and this was not recorded
        if not isinstance(error, Exception):
            self.abandon(messages.cancelled())
        elif work.state is State.IDLE and not (self._kept.lent or work.is_begun):
            self._end()
        elif work.state is not State.LOCKED and work.ticket is not None and work.ticket.claimed:
            self._give_up_ticket()

    # Settings of the application on the connection.

    def _keep(self, lease: Lease, statement: Statement, report: Report) -> None:
        """Keep the connection, if a statement has set something on it."""
        words, kind, before = statement.words, statement.kind, report.was
        assert words is not None
        if kind is Kind.SET and words.value is not None and before is None:
            if words.name != "synchronous":
                return  # it was so before
            before = report.now
        self._kept = self._kept.on(lease)
        self._kept.add(kind, words, before, report.now)
        if kind is Kind.SET:
            self.work.turned |= {words.name}
            if words.name in ("attach", "detach"):
                self.work.version = None
                lease.driver.run(self._pool.checkpointer.share)

    def let_go(self) -> None:
        """Give back the kept connection, when it is no longer used here."""
        kept, self._kept = self._kept, NOTHING_KEPT
        if kept is not NOTHING_KEPT:
            kept.let_go()

    def pin(self) -> DriverConnection:
        """Lend the driver's connection to the application.

        It stays with this connection until that is closed, and is not used by others afterwards. In
        a greenlet the ticket is taken first, because the application may write. Statements of the
        application wait for SQLite's lock inside SQLite.
        """
        if self.work.failure is not None:
            raise self.work.failure
        lease = self._wait_for_driver() if in_greenlet() else self._find_driver()
        self._kept, writes = self._kept.on(lease), self._access != "read"
        return self._kept.lend(self._settings.queue_timeout, self.autocommit, writes)

    @property
    def _access(self) -> Access:
        """The access of this transaction, or of the engine before the first statement."""
        return self.work.access or self._settings.access

    def _wait_for_driver(self) -> Lease:
        self.last_statement = _PIN.sql
        self.statements.begin()
        try:
            self.runner.use_here()
            self._pool.admission.enter(self)
            want = Want.NO if self._access == "read" else Want.WAIT
            work = self.work
            lease = self._come_by_both(Action(want, keeps=True), _PIN)
            lease.driver.run(_nothing)  # wait until its thread is idle
            self._check(work)
        except BaseException as error:
            self._clean_up_after(error, _PIN)
            raise
        finally:
            self.statements.end()
        return lease

    def _find_driver(self) -> Lease:
        """The connection that it has, or an idle one, because this code cannot wait."""
        lease = self.work.lease or self._kept.lease or self._pool.wake(self)
        lease = lease or self._pool.idle_lease()
        if lease is None:
            raise messages.no_driver()
        self.work.lease = lease
        return lease

    def _look_at_driver(self) -> None:
        """Record a transaction that the application has begun on the driver's connection.

        It already has SQLite's lock. So it must not wait for the ticket, because the holder of the
        ticket may wait for the lock.
        """
        work, kept = self.work, self._kept
        if work.in_transaction or not kept.is_locked:
            return
        work.lease = kept.lease
        if work.ticket is None or not work.ticket.claim():
            work.ticket = None
        work.state, work.log, work.wrote = State.LOCKED, NOTHING_READ, True

    # The end.

    def commit(self) -> None:
        """Commit, and wait for the disk. A cancellation during COMMIT is raised when it has ended.

        A cancellation during the wait for the disk is raised at once; the commit has happened.
        Raises :class:`DurabilityError` if the disk does not confirm it.
        """
        work = self.work
        if work.failure is not None:
            raise work.failure
        if self._kept.lent and in_greenlet():
            self.runner.use_here()
            self._look_at_driver()
        if work.state is not State.LOCKED:
            self._end_reading()
            return
        lease = work.lease
        assert lease is not None
        self.statements.begin()
        try:
            self._send_commit(lease)
        except BaseException as error:
            if not isinstance(error, Exception):
                self.abandon()
            raise
        finally:
            self.statements.end()
        self._finish(lease, work.wrote or self._kept.lent)

    def _send_commit(self, lease: Lease) -> None:
        work, driver = self.work, lease.driver
        deadline: float | None = None
        streams = list(lease.streams)
        cursors = lease.opened = lease.forget_streams()
        while True:
            ended = self.runner.commit(driver, cursors, self._witness(work.sent))
            for stream, rows in zip(streams, ended.rest, strict=False):
                stream.keep(rows)
            lease.opened = []
            streams, cursors, error = [], [], ended.error
            if error is None:
                return
            if errors.sqlite_code(error) != errors.SQLITE_BUSY:
                driver.suspect |= errors.sqlite_code(error) in SUSPECT
                if not ended.in_transaction:
                    self.abandon(messages.dropped(self.last_statement, error))
                raise self._pool.explain(error)
            deadline = self._wait_for_lock(deadline, "COMMIT")
            self._check(work)

    def _finish(self, lease: Lease, wrote: bool) -> None:
        """After SQLite has committed: give everything back, then wait for the disk.

        A cancellation is raised after a checkpoint that needs the ticket.
        """
        if not wrote:
            self._end()
            return
        commit = Commit(self._pool, lease.driver)
        try:
            if commit.keeps_ticket and in_greenlet():
                with suppress(Exception):  # a later commit tries again
                    self._run_at_the_end(lease.driver, commit.work)
        finally:
            self._end(checkpoints=commit.due is When.AFTER)
        if commit.waits:
            commit.wait(now=self._queue.is_idle and not self.runner.crowded)
            self._queue.turn.step_aside()
            self.runner.pace(holder=True)  # one fsync may wake many tasks

    def _run_at_the_end(
        self, driver: DriverConnection, function: Callable[..., Any], *args: Any
    ) -> Any:
        """Run a function in the thread when the transaction is over in SQLite.

        A statement that another task sends meanwhile waits: without a BEGIN, SQLite would commit it
        at once.
        """
        self.statements.begin()
        try:
            return driver.run_to_end(function, *args)
        finally:
            self.statements.end()

    def _wait_for_what_was_read(self, driver: DriverConnection, action: Action) -> None:
        """With durability="strict": wait until everything that was read is on disk.

        While this transaction has the lock, no other one commits.
        """
        locked = self.work.state is State.LOCKED and action.begin is not Begin.WRITE
        if driver.sync is Sync.SHARED and not locked:
            syncer = self._pool.syncer(driver)
            await_only(syncer.wait(syncer.committed(), now=True))

    def _end_reading(self) -> None:
        """End a transaction that has only read. Nothing has to reach the disk."""
        work, kept = self.work, self._kept
        if kept.lent and kept.lease is not None and in_greenlet():
            driver = kept.lease.driver  # the application may have written
            error = self._run_at_the_end(driver, sending.commit).error
            if error is not None:
                self._run_at_the_end(driver, sending.clean_up)
                self._end()
                raise self._pool.explain(error)
            self._finish(kept.lease, wrote=True)
            return
        if work.lease is not None and work.state is State.SNAPSHOT:
            work.lease.tidy(sending.finish_reading)
        self._end()

    def rollback(self, by_statement: bool = False) -> None:
        """Roll back. A cancellation is raised when the rollback has ended.

        A running statement of another task is interrupted. ``by_statement``: whether the
        application sent ROLLBACK as a statement.
        """
        work, kept, others = self.work, self._kept, self.statements.running > by_statement
        state, lent, lease = work.state, kept.lent, kept.lease or work.lease
        if state is State.IDLE and work.access is None and not (work.by_hand or lent or others):
            return  # a session that is closed rolls back twice
        if lease is not None and (state is State.LOCKED or lent or others):
            if not in_greenlet():
                self.abandon()
            else:
                if others:
                    lease.driver.interrupt()
                self._undo(lease, hurry=lent)
        else:
            if lease is not None and state is State.SNAPSHOT:
                # An application's function may have written. ROLLBACK would interrupt open streams.
                lease.tidy(sending.finish_reading if lease.streams else sending.clean_up)
            self._end()
        if work.not_kept is not None:
            messages.tell_of_lost_changes(work.not_kept)

    def _undo(self, lease: Lease, hurry: bool) -> None:
        self.statements.begin()
        self.work.undone = True
        try:
            lease.driver.run_to_end(sending.clean_up, lease.forget_streams(), hurry=hurry)
        except Exception:
            lease.driver.suspect = True
        finally:
            self.statements.end()
            self._end()

    def _end(self, checkpoints: bool = False) -> None:
        """Give everything back. SQLite's transaction has already ended."""
        work, self.work = self.work, Work()
        ticket = work.ticket
        try:
            if work.limit is not None:
                work.unlimit()
            if work.site is not None and work.failure is None:
                idled = work.idled or (ticket is not None and not ticket.held)
                idled = idled and not work.stalled  # a stall is already recorded
                self._queue.prediction.note(work.site, work.state is State.LOCKED, idled)
            lease = work.lease or self._pool.wake(self)
            if lease is not None and lease.streams:
                self._last = lease
            elif self._last is not None and not self._last.streams:
                self._last = None
            if lease is not None and checkpoints and not lease.streams:
                done = lease.end if self._kept is NOTHING_KEPT else None
                lease.driver.post(self._pool.checkpointer.run, done=done)
            elif lease is not None and self._kept is NOTHING_KEPT:
                lease.end()
        finally:  # even after an error or a cancellation
            self._pool.admission.leave(self)
            if ticket is not None:
                self._queue.release(ticket)

    def _give_up_ticket(self) -> None:
        ticket, self.work.ticket = self.work.ticket, None
        self.work.unlimit()
        if ticket is not None:
            self._queue.release(ticket)

    def abandon(self, failure: Exception | None = None) -> None:
        """Roll back without waiting, from any thread. Later statements raise ``failure``."""
        work, self.work = self.work, Work()
        if failure is not None:
            self.work.failure, self.work.state = failure, State.FAILED
        work.unlimit()
        lease = work.lease or self._pool.wake(self)
        ends = lease if self._kept is NOTHING_KEPT else None
        done = partial(self._queue.release_after, ends, work.ticket)
        if lease is None:
            done()
        else:
            lease.abandon(self.running, sending.clean_up, done)
        self._pool.admission.leave(self)


def _nothing(raw: Any) -> None:
    """Run in a thread to wait until it has finished its earlier work."""


def _nothing_sent() -> Outcome:
    """The outcome of a statement that is not sent.

    SQLAlchemy requires that each execution awaits something (https://sqlalche.me/e/20/xd1r).
    """
    await_only(READY)
    return Outcome()
