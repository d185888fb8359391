"""Transaction: what each statement of a connection does, and how its transaction ends.

A transaction takes a connection of the pool with its first statement and keeps it until its end.
Before its first write it may lose the ticket at any moment; after that, it has SQLite's lock.
:func:`.decide.decide` decides what a statement needs; this class does it.
"""

from __future__ import annotations

import asyncio
import logging
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
from qsession.config import (
    Access,
    Settings,
    check_access,
    check_options,
    check_priority,
    check_reads,
)
from qsession.sqlite.changes.commits import Witness
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.pace import Pace
from qsession.sqlite.driver.physical import SUSPECT, DriverConnection
from qsession.sqlite.driver.setup import Sync, attached_to_itself, pragma, sync_after_setting
from qsession.sqlite.durability.checkpoint import Checkpointer, When
from qsession.sqlite.durability.syncer import Syncer, recover
from qsession.sqlite.processes.owners import shorten
from qsession.sqlite.queue.admission import Admission
from qsession.sqlite.queue.prediction import Guess, call_site
from qsession.sqlite.queue.want import Want
from qsession.sqlite.queue.write_queue import WriteQueue
from qsession.sqlite.transaction import messages, sending
from qsession.sqlite.transaction.conflict import as_stale_data, conflict
from qsession.sqlite.transaction.decide import (
    Action,
    Begin,
    Instead,
    State,
    decide_for,
)
from qsession.sqlite.transaction.digest import StreamDigest, error_seen
from qsession.sqlite.transaction.kept import Kept
from qsession.sqlite.transaction.log import Log
from qsession.sqlite.transaction.plan import Plan, plan_of
from qsession.sqlite.transaction.runner import FEW, READY, Runner
from qsession.sqlite.transaction.sending import Outcome, Report, Stage
from qsession.sqlite.transaction.statement import (
    MAY_WRITE,
    SAVEPOINTS,
    Kind,
    Statement,
    changes_rows,
    is_committed_by_sqlite3,
    leaves_wal,
    may_change_schema,
    means_on,
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

logger = logging.getLogger("qsession")


class Connections(Protocol):
    """What a transaction needs from its pool."""

    write_queue: WriteQueue
    admission: Admission
    pace: Pace
    checkpointer: Checkpointer
    settings: Settings

    @property
    def database(self) -> str: ...

    @property
    def wants_room(self) -> bool: ...

    @property
    def reserve_is_kept(self) -> bool: ...

    def lease(self, holder: bool, keeps: bool = False) -> Lease: ...

    def idle_lease(self) -> Lease | None: ...

    def rest(self, transaction: Transaction, lease: Lease) -> None: ...

    def wake(self, transaction: Transaction) -> Lease | None: ...

    def syncer(self, driver: DriverConnection) -> Syncer: ...

    def check_file(self, driver: DriverConnection, again: bool = False) -> None: ...

    def explain(self, error: Exception, query_only: bool = False) -> Exception: ...


class Transaction:
    """The transactions of one :class:`qsession.sqlite.connection.RoutedConnection`."""

    _kept: Kept | None = None
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

    # The interface for the queue.

    @property
    def task(self) -> Caller | None:
        """The caller that used it last: a task, or a thread of a synchronous engine."""
        return self.runner.task

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that used it last."""
        return self.runner.loop

    @property
    def ticket(self) -> Ticket | None:
        """The ticket that it has, or had until it was taken away."""
        return self.work.ticket

    @property
    def wrote(self) -> bool:
        """Whether it has written."""
        return self.work.wrote

    @property
    def promised(self) -> bool:
        """Whether its reads must not change before it writes, unless it idles."""
        return self.work.access == "write"

    @property
    def insists(self) -> bool:
        """Whether it may idle for ``stall_after`` before its first write, however many wait."""
        return self.promised or self._queue.prediction.conflicted(self.work.site)

    @property
    def running(self) -> bool:
        """Whether a statement of it runs or waits."""
        return self.statements.running > 0 or self.in_call

    @property
    def activity(self) -> int:
        """Changes after each action of the transaction."""
        return self.statements.activity

    def reads_for(self) -> tuple[float, float]:
        """How long the present SELECT has run: processor time and clock time, in seconds."""
        return self.runner.reads_for()

    @property
    def snapshot_since(self) -> float | None:
        """Since when it has had a snapshot, its own or that of an open stream. The snapshot keeps
        the WAL from being reused.
        """
        work = self.work
        if work.state is State.SNAPSHOT:
            return work.snapshot_began
        return work.last_read if work.lease is not None and work.lease.streams else None

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was sent since its last end, and nothing is kept from before."""
        return self.work.access is None and self._kept is None and self._last is None

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
        work, statements = self.work, self.statements
        free = work.state in (State.IDLE, State.READING) and work.lease is None
        return free and not (self._kept or self._last or work.limit or statements.running)

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
                self._take_options(options)
            if self._kept is not None:
                self._look_at_kept(self._kept)
            if statement.kind in MAY_WRITE and (
                queue.commits.observed or self.work.sent is not None
            ):
                self.work.note(statement.sql, _sample(statement))
            action = self._decide(statement)
            if action.instead is not None:
                return self._do_instead(action.instead, statement)
            outcome = self._perform(action, statement)
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
        if not commits.observed or lease is None or self._lent:
            return None
        return Witness(commits, lease.driver, None if self._kept else sent)

    def _take_options(self, options: Any) -> None:
        work, settings = self.work, self._settings
        access, reads = settings.access, settings.reads
        if options:
            check_options(tuple(options))
        if "qsession_access" in options:
            access = check_access("qsession_access", options["qsession_access"])
        if "qsession_reads" in options:
            reads = check_reads("qsession_reads", options["qsession_reads"])
        if "qsession_priority" in options:
            work.priority = check_priority("qsession_priority", options["qsession_priority"])
        if reads == "snapshot":
            work.snapshot = True
        if options.get("qsession_locks"):
            work.locks = True
        work.access = access

    def _is_alone(self) -> bool:
        """Whether a statement under AUTOCOMMIT is its own transaction."""
        work = self.work
        if work.by_hand or work.savepoints:
            return False
        return self._kept is None or not self._kept.is_locked

    @property
    def _lent(self) -> bool:
        """Whether the application has the driver's connection."""
        return self._kept is not None and self._kept.lent

    def _decide(self, statement: Statement) -> Action:
        work, kind = self.work, statement.kind
        statement.alone = self.autocommit and self._is_alone()
        writes_mostly = False
        if (
            work.state is State.IDLE
            and work.access == "auto"
            and kind in _READS
            and not statement.alone
        ):
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
            statement.alone,
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
            self._remember(statement)
            if self.autocommit:
                self._follow_savepoints(statement)
        elif instead is Instead.REFUSE_WRITE or not self._has_no_effect(instead, statement):
            raise messages.refusal(instead, statement.sql)
        return _nothing_sent()

    def _has_no_effect(self, instead: Instead, statement: Statement) -> bool:
        """Whether a PRAGMA that works only outside a transaction changes nothing, or only later."""
        if self._is_so_already(statement):
            return True
        return instead is Instead.REFUSE_SETTING and self._turns_back(statement)

    def _is_so_already(self, statement: Statement) -> bool:
        """Whether it is ``PRAGMA foreign_keys=ON`` and they are on, as sessions often begin."""
        lease, words = self.work.lease, statement.words
        if lease is None or words is None or words.name != "foreign_keys" or words.value is None:
            return False
        if bool(lease.driver.run(pragma, words.name)) is not means_on(words.value):
            return False
        if self._kept is not None:
            self._kept.postponed.pop(words.name, None)
        return True

    def _turns_back(self, statement: Statement) -> bool:
        """Whether it is ``PRAGMA foreign_keys=ON`` after its user has turned them off, as at the
        end of a script that rebuilds a table. They are turned on when the transaction has ended.

        If they were turned off before the transaction, all later ones on the connection may rely on
        it: DROP TABLE of a parent table would delete its children. Then it does what SQLite does,
        which is nothing.
        """
        kept, words = self._kept, statement.words
        if kept is None or words is None or words.value is None:
            return False
        if not kept.turns_back(words.name, means_on(words.value)):
            return False
        if words.name in self.work.turned:
            kept.postpone(words.name)
        else:
            logger.info(
                "%r has no effect inside a transaction (https://sqlite.org/pragma.html"
                "#pragma_foreign_keys). They were turned off before it began, and stay off until "
                "they are turned on outside a transaction, or the connection is closed.",
                statement.sql,
            )
        return True

    def _remember(self, statement: Statement) -> None:
        """Keep a statement to send after BEGIN IMMEDIATE. Before that there is nothing to undo."""
        work, words = self.work, statement.words
        assert words is not None
        if words.kind is Kind.DEFER:
            work.remembered = (*work.remembered, statement.sql)
            return
        work.savepoints = savepoints_after(work.savepoints, words)
        others = [sql for sql in work.remembered if not sql.startswith("SAVEPOINT ")]
        quoted = ['"' + name.replace('"', '""') + '"' for name in work.savepoints]
        work.remembered = (*others, *(f"SAVEPOINT {name}" for name in quoted))

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
        work, settings = self.work, self._settings
        read = work.last_read
        if read is not None and time.monotonic() - read >= settings.stall_after:
            work.idled = True
        elif work.place is not None:
            self._queue.watch.places.note(work.place, long=False)
            work.place = None
        while True:
            ticket = work.ticket
            if ticket is not None:
                if ticket.claim() if action.claims else ticket.held:
                    return
                work.ticket, work.idled = None, True  # it was taken away
                work.unlimit()
            reads = statement.kind in _READS
            found = self._queue.acquire(
                self, settings, action.want, reads, work.priority, self._give_back
            )
            if self.work is not work and found is not None:
                self._queue.release(found)
            self._check(work)
            if found is None:
                return
            work.ticket = found
            self._limit_hold()
            if not action.claims:
                self._queue.watch.start()
                return

    @property
    def site(self) -> int | None:
        """Its call site, if the prediction uses it."""
        return self.work.site

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
        site = work.site
        if site is not None and queue.prediction.note_stall(site):
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
        if self._kept is None and self.work is work and not work.stays:
            work.lease, work.version = None, None
            lease.end()

    def give_up_snapshot(self) -> bool:
        """Give its connection to the holder of the ticket, if it idles. Its reads are validated
        when it reads again. False if it cannot. In its loop.
        """
        work, lease = self.work, self.work.lease
        if work.state is not State.SNAPSHOT or work.access == "read" or lease is None:
            return False
        if self.running or work.holds or self._kept or lease.streams or not lease.driver.quiet:
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
        lease = work.lease
        if lease is None and self._kept is not None:
            lease = self._kept.lease
        if lease is None:
            lease = self._pool.wake(self)
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
        used = lease.streams or lease.opened
        if not (used or lease.reserved or self._kept or lease.driver.suspect):
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
                self._lock()
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
        plan = self._plan(action, statement, lease, upgrades)
        deadline: float | None = None
        while True:
            self._check(work)
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
            if driver.query_only and self._lent and self._access != "read":
                driver.let_write(True)  # the application may write on it
            if driver.frozen:
                self._pool.check_file(driver, again=True)
            if report.error is None or not report.busy or work.state is State.LOCKED:
                return report
            if upgrades or lease.streams:  # its snapshot is no longer the latest: validate
                upgrades = False
                self._read_streams(lease)  # each keeps its snapshot until its end
                plan = self._plan(action, statement, lease, upgrades)
                continue
            if driver.in_its_own_way:
                report.error = messages.in_its_own_way(report.error)
                return report
            if leaves_wal(statement.words):
                report.error = messages.stays_in_wal(report.error, statement.sql)
                return report
            deadline = self._wait_for_lock(deadline, statement.sql)

    def _plan(self, action: Action, statement: Statement, lease: Lease, upgrades: bool) -> Plan:
        driver, lent = lease.driver, statement.alone and self._lent
        plan = plan_of(self.work, action, statement, upgrades, lent)
        if statement.stream is not None:
            plan.opened = lease.opened
        words, query_only = statement.words, action.query_only
        if words is not None and words.name == "query_only":
            query_only = False  # the application sets or reads it
        elif driver.only_reads or (self._kept is not None and self._kept.sets("query_only")):
            query_only = None  # a listener or the application has set it, and it stays
        if query_only is not None and query_only is not driver.query_only:
            plan.query_only = query_only
            driver.query_only = None  # unknown until the plan has run
        if driver.has_attached:  # PRAGMA data_version covers the main file only
            plan.asks_version, plan.version = False, None
        elif may_change_schema(words) and not statement.alone:
            plan.watches = "schema_version"
        if statement.kind is Kind.WRITE and statement.alone:
            plan.witness = self._witness({statement.sql: _sample(statement)})
        return plan

    # Results.

    def _settle(
        self, action: Action, statement: Statement, lease: Lease, report: Report
    ) -> Outcome:
        """Record what happened; return the outcome or raise the error."""
        work = self.work
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
        if report.in_transaction and not (is_open or self._lent):
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
            self._note_write(action, statement, report, outcome)
        elif action.logs:
            self._log(statement, seen)
        if action.keeps:
            self._keep(lease, statement, report)
        elif statement.kind is Kind.OUTSIDE and not statement.alone:
            self._give_up_ticket()
        if statement.alone and work.state is not State.LOCKED:
            self._end_alone(statement, lease, outcome)
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
                self._lock()
                if statement.kind is Kind.BEGIN_WRITE:
                    work.by_hand = True
        elif action.begin is Begin.SNAPSHOT:
            if report.in_transaction:
                work.begin_snapshot()
        elif action.begin is Begin.END and not report.in_transaction:
            work.state = State.READING

    def _lock(self) -> None:
        """Note that it has SQLite's write lock: from now on its reads cannot change."""
        work = self.work
        assert work.ticket is not None
        assert work.ticket.claimed
        work.state, work.log, work.version = State.LOCKED, NOTHING_READ, None
        work.remembered = ()

    def _failed(
        self, action: Action, statement: Statement, lease: Lease, report: Report, was_open: bool
    ) -> None:
        """Record what became of the transaction, and raise the error of the statement."""
        work, error = self.work, report.error
        assert error is not None
        elsewhere = statement.kind in (Kind.SET, Kind.COPY)  # ATTACH, VACUUM INTO: another file
        if report.code in SUSPECT and not elsewhere:
            lease.driver.suspect = True
            if self._kept is not None:
                self._lose_kept(error)
        if was_open and not report.in_transaction and action.begin is not Begin.END:
            self._dropped(error)
        elif work.state is State.LOCKED:
            work.wrote = work.wrote or report.changed  # OR FAIL keeps the rows before the error
        elif statement.alone:
            self._finish(lease, report.changed)
        else:
            seen = action.logs or (action.claims and report.lacks)
            if seen and report.stage is Stage.STATEMENT and not statement.many:
                self._log(statement, error_seen(error))
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
        raise self._pool.explain(error, self._refuses_to_write(lease.driver))

    def _refuses_to_write(self, driver: DriverConnection) -> bool:
        """Whether a listener or the application has set PRAGMA query_only."""
        changed = self._kept is not None and self._kept.sets("query_only")
        return driver.only_reads is not changed

    def _note_write(
        self, action: Action, statement: Statement, report: Report, outcome: Outcome
    ) -> None:
        """Record what a statement has done behind BEGIN IMMEDIATE."""
        work = self.work
        if action.only_begins:
            work.turned = frozenset()
        elif statement.kind is Kind.WRITE or (outcome.changed and statement.kind not in SAVEPOINTS):
            work.wrote = True
            did_nothing = report.now is not None and report.was is None
            if work.not_kept is not None or did_nothing:
                return
            if is_committed_by_sqlite3(statement, outcome.changed_rows):
                work.not_kept = statement.sql

    def _log(self, statement: Statement, seen: Any) -> None:
        work = self.work
        if work.log is NOTHING_READ:
            work.log = Log()
        work.log.append(statement, seen)
        work.last_read = time.monotonic()

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

    def _dropped(self, error: Exception) -> None:
        """Note that SQLite itself rolled back the transaction (disk full, RAISE(ROLLBACK))."""
        self.abandon(messages.dropped(self.last_statement, error))

    def _wait_for_lock(self, deadline: float | None, sql: str) -> float:
        """Wait a moment for another program's lock. Return the deadline, by :func:`time.monotonic`.

        ``deadline``: what the previous wait returned; None for the first one. Raises
        :class:`QueueTimeout` at the deadline.
        """
        now = time.monotonic()
        if deadline is None:
            deadline = now + self._settings.queue_timeout
        elif now >= deadline:
            raise self._lock_timeout(sql)
        await_only(asyncio.sleep(BUSY_RETRY))
        return deadline

    def _lock_timeout(self, sql: str) -> errors.QueueTimeout:
        self._queue.counters.timeouts += 1
        lease, database = self.work.lease, self._pool.database
        path = database if lease is None else lease.driver.path
        return messages.lock_timeout(sql, database, path, self._settings.queue_timeout)

    def _clean_up_after(self, error: BaseException, statement: Statement) -> None:
        """After an error: give up a ticket that is not needed; undo a cancelled transaction."""
        work, told = self.work, isinstance(error, sqlite3.Error | errors.QSessionError)
        if statement.kind in _SETTINGS and work.lease is not None and not told:
            work.lease.driver.suspect = True  # it may have been set, and this was not recorded
        if not isinstance(error, Exception):
            self.abandon(messages.cancelled())
        elif work.state is State.IDLE and not (self._lent or work.remembered or work.by_hand):
            self._end()
        elif work.state is not State.LOCKED and work.ticket is not None and work.ticket.claimed:
            self._give_up_ticket()

    # Settings of the application on the connection.

    def _keep(self, lease: Lease, statement: Statement, report: Report) -> None:
        """Keep the connection, if a statement has set something on it."""
        words, driver, before = statement.words, lease.driver, report.was
        assert words is not None
        if statement.kind is Kind.SET and words.value is not None and before is None:
            if words.name != "synchronous":
                return  # it was so before
            before = report.now
        kept = self._kept = self._kept or Kept(lease)
        kept.add(statement.kind, words, before, report.now)
        if statement.kind is Kind.SET:
            self.work.turned |= {words.name}
            driver.sync = driver.run(sync_after_setting, driver.sync, words.name)
            if words.name in ("attach", "detach"):
                driver.has_attached, self.work.version = True, None
                driver.in_its_own_way = driver.run(attached_to_itself)
                driver.run(self._pool.checkpointer.share)

    def _lose_kept(self, error: Exception) -> None:
        """Record that the connection cannot be used again, and its settings are lost."""
        kept = self._kept
        assert kept is not None
        if kept.is_changed:
            kept.lost = messages.settings_lost(self.last_statement, error)

    def let_go(self) -> None:
        """Give back the kept connection, when it is no longer used here."""
        kept, self._kept = self._kept, None
        if kept is not None:
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
        kept = self._kept = self._kept or Kept(lease)
        kept.lend(self._settings.queue_timeout, self.autocommit, self._access != "read")
        return lease.driver

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
        lease = self.work.lease or (None if self._kept is None else self._kept.lease)
        lease = lease or self._pool.wake(self) or self._pool.idle_lease()
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
        if kept is None or not kept.is_locked or work.in_transaction:
            return
        work.lease = kept.lease
        if work.ticket is None or not work.ticket.claim():
            work.ticket = None
        work.state, work.log, work.wrote = State.LOCKED, NOTHING_READ, True

    @property
    def locked_by_driver(self) -> bool:
        """Whether the application has SQLite's lock through the driver's connection."""
        return self._kept is not None and self._kept.is_locked

    # The end.

    def commit(self) -> None:
        """Commit, and wait for the disk. A cancellation during COMMIT is raised when it has ended.

        A cancellation during the wait for the disk is raised at once; the commit has happened.
        Raises :class:`DurabilityError` if the disk does not confirm it.
        """
        work = self.work
        if work.failure is not None:
            raise work.failure
        if self._lent and in_greenlet():
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
        self._finish(lease, work.wrote or self._lent)

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
                    self._dropped(error)
                raise self._pool.explain(error)
            deadline = self._wait_for_lock(deadline, "COMMIT")
            self._check(work)

    def _finish(self, lease: Lease, wrote: bool) -> None:
        """After SQLite has committed: give everything back, then wait for the disk.

        The commit gets its number before the ticket passes on, so that the numbers are in the order
        of the commits. A cancellation is raised after a checkpoint that needs the ticket.
        """
        if not wrote:
            self._end()
            return
        driver = lease.driver
        self._queue.counters.commits += 1
        shared = driver.sync is Sync.SHARED
        # If the disk has lost earlier frames, commits that SQLite itself synced are lost as well.
        looks = shared or (driver.sync is Sync.SQLITE and driver.identity is not None)
        syncer = self._pool.syncer(driver) if looks else None
        number = 0 if syncer is None else syncer.committed()
        when = self._pool.checkpointer.due()
        try:
            if when is When.HOLDING and in_greenlet():
                with suppress(Exception):  # a later commit tries again
                    self._run_at_the_end(driver, self._pool.checkpointer.run)
            if syncer is not None and syncer.failed and in_greenlet():
                external = self._pool.checkpointer.external
                with suppress(Exception):  # the wait for the disk tells what is so
                    self._run_at_the_end(driver, recover, syncer, external)
        finally:
            self._end(checkpoints=when is When.AFTER)
        if syncer is not None and (shared or syncer.failed):
            quiet = self._queue.is_idle and not self.runner.crowded
            wait = partial(_wait_and_tell, syncer) if events.observers else syncer.wait
            try:
                await_only(wait(number, now=quiet))
            except errors.DurabilityError:
                with suppress(Exception):  # if the file is gone, the next transaction reopens it
                    self._pool.check_file(driver, again=True)
                raise
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
        if kept is not None and kept.lent and in_greenlet():  # the application may have written
            driver = kept.lease.driver
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

    def _end_alone(self, statement: Statement, lease: Lease, outcome: Outcome) -> None:
        """End a statement under AUTOCOMMIT, which SQLite has committed."""
        could = statement.kind in (Kind.UNKNOWN, Kind.OUTSIDE)
        self._finish(lease, statement.kind is Kind.WRITE or (could and outcome.changed))

    def rollback(self, by_statement: bool = False) -> None:
        """Roll back. A cancellation is raised when the rollback has ended.

        A running statement of another task is interrupted. ``by_statement``: whether the
        application sent ROLLBACK as a statement.
        """
        work, kept, others = self.work, self._kept, self.statements.running > by_statement
        state, lent = work.state, kept is not None and kept.lent
        lease = work.lease if kept is None else kept.lease
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
                done = lease.end if self._kept is None else None
                lease.driver.post(self._pool.checkpointer.run, done=done)
            elif lease is not None and self._kept is None:
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
        done = partial(_passed_on, self._queue, work.ticket, lease if self._kept is None else None)
        if lease is None:
            done()
        else:
            lease.abandon(self.running, sending.clean_up, done)
        self._pool.admission.leave(self)

    def _limit_hold(self) -> None:
        if self._settings.max_hold is not None and self.work.limit is None:
            loop = asyncio.get_running_loop()
            self.work.limit = loop.call_later(self._settings.max_hold, self._expire_hold)

    def _expire_hold(self) -> None:
        """Roll back a transaction that held the ticket for too long, when it is idle."""
        work = self.work
        if self.running:
            work.limit = asyncio.get_running_loop().call_later(BUSY_RETRY, self._expire_hold)
            return
        ticket: Ticket | None = work.ticket
        if ticket is None or not ticket.held:
            return
        assert self._settings.max_hold is not None
        self.abandon(messages.hold_timeout(self.last_statement, ticket, self._settings.max_hold))


async def _wait_and_tell(syncer: Syncer, number: int, *, now: bool) -> None:
    """Wait for the disk, and tell the subscribers of events how long it took."""
    began, outcome = time.monotonic(), "cancelled"
    try:
        await syncer.wait(number, now=now)
        outcome = "confirmed"
    except errors.DurabilityError:
        outcome = "failed"
        raise
    finally:
        events.emit(events.DiskWait(syncer.database, time.monotonic() - began, outcome))


def _passed_on(queue: WriteQueue, ticket: Ticket | None, lease: Lease | None) -> None:
    """Give back what an abandoned transaction had, after SQLite has rolled it back."""
    try:
        if lease is not None:
            lease.give_back()
    finally:
        if ticket is not None:
            queue.release(ticket)


def _sample(statement: Statement) -> Any:
    """Parameters of a statement; of an executemany, the first ones."""
    if statement.many:
        return next(iter(statement.parameters), ())
    return statement.parameters


def _nothing(raw: Any) -> None:
    """Run in a thread to wait until it has finished its earlier work."""


def _nothing_sent() -> Outcome:
    """The outcome of a statement that is not sent.

    SQLAlchemy requires that each execution awaits something (https://sqlalche.me/e/20/xd1r).
    """
    await_only(READY)
    return Outcome()
