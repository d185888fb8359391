"""Lone statements: each is a transaction of its own, and most need no greenlet.

A SELECT that is known to be short runs in the step of its task. A write that is known to be short
asks for the ticket, and whoever gives the ticket back to it has its loop run it: its task wakes
once, when the disk has confirmed the commit. So writes that wait for one another follow in one turn
of the loop, each with the ticket and a COMMIT of its own. Everything else, and whatever turns out
to be not so simple, is done by a transaction in a greenlet, with the ticket that was granted.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, cast

from qsession import errors
from qsession.sqlite.connection import RoutedConnection
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.pace import BUDGET, LONG_WRITE
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.driver.setup import Sync
from qsession.sqlite.durability.checkpoint import When
from qsession.sqlite.durability.syncer import Syncer
from qsession.sqlite.pool import WriteQueuePool
from qsession.sqlite.queue.nesting import settle
from qsession.sqlite.queue.write_queue import WriteQueue
from qsession.sqlite.transaction import sending
from qsession.sqlite.transaction.plan import Plan
from qsession.sqlite.transaction.runner import Runner
from qsession.sqlite.transaction.sending import Outcome, Report
from qsession.sqlite.transaction.statement import Kind, Statement
from qsession.sqlite.transaction.transaction import Transaction
from qsession.waiting.greenlets import spawn
from qsession.waiting.pacing import turns
from qsession.waiting.ticket import Ticket, TicketState

_SUSPECT = frozenset(
    (errors.SQLITE_IOERR, errors.SQLITE_CORRUPT, errors.SQLITE_CANTOPEN, errors.SQLITE_NOTADB)
)


class LoneWrite:
    """A statement that writes, and waits for the ticket or for the disk: the owner of its ticket.

    It never idles with the ticket, so whoever waits for it waits for a moment.
    """

    __slots__ = (
        "_task",
        "commit",
        "driver",
        "error",
        "future",
        "has_turn",
        "lane",
        "last_statement",
        "outcome",
        "statement",
        "syncer",
        "ticket",
    )

    wrote = False
    locked_by_driver = False
    promised = True
    activity = 0
    site = None
    snapshot_since = None

    def __init__(self, statement: Statement, lane: Lane) -> None:
        self.statement = statement
        self.last_statement = statement.sql
        self.lane = lane
        self._task = weakref.ref(cast("asyncio.Task[Any]", asyncio.current_task(lane.loop)))
        self.ticket: Ticket = Ticket(self)
        self.ticket.on_granted = self._granted
        self.future: asyncio.Future[Any] = self.ticket.prepare(lane.loop)
        """What its task waits for."""
        self.has_turn = False
        """Whether it has the turn on the file with the ticket."""
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.commit = 0
        """Its number."""
        self.driver: DriverConnection | None = None
        self.syncer: Syncer | None = None
        """What the commit is confirmed by, where somebody else has to."""

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that waits for it; it may be dropped."""
        return self._task()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.lane.loop

    @property
    def running(self) -> bool:
        """Whether it is at work. Until then its ticket can be taken away, as if it idled."""
        return self.ticket.claimed

    def reads_for(self) -> tuple[float, float]:
        return 0.0, 0.0

    def taken_away(self, place: int | None, stalled: bool) -> None:
        """Its loop stood still; it asks again."""

    def abandon(self, failure: Exception | None = None) -> None:
        """Its loop is closed. It is not in the middle of anything but a checkpoint."""
        self.lane.pool.write_queue.queue.leave(self.ticket)

    def give_up_snapshot(self) -> bool:
        return False

    def _granted(self) -> bool:
        return not self.future.cancelled() and self.lane.go_on_with(self)

    def answer(self) -> None:
        """Let its task go on."""
        if not self.future.done():
            self.future.set_result(None)


class Lane:
    """The lone statements of the tasks of one loop, on one pool."""

    def __init__(self, pool: WriteQueuePool, loop: asyncio.AbstractEventLoop) -> None:
        self.pool = pool
        self.loop = loop
        self._turn = turns.of(loop)
        self._runner = Runner(pool.pace, pool.write_queue.counters)
        self._runner.use_here()
        self._granted: deque[LoneWrite] = deque()
        """The one that holds the ticket, behind those from which it was taken away."""
        self._thread = 0
        """In which the loop runs. To ask for the running loop is a system call before Python 3.12.
        """
        self._serves = False
        self._looks = False
        """Whether it is about to look whether more writes have come."""
        settings = pool.settings
        self._access = settings.access
        self._simple = settings.durability != "strict" and settings.max_hold is None

    async def run(
        self,
        statement: Statement,
        options: Mapping[str, Any],
        connection: RoutedConnection | None = None,
    ) -> Outcome:
        """Run a statement and commit it.

        ``connection``: what a statement that is not simple runs on, where that must be the same one
        each time; it is in autocommit mode.

        Raises what SQLite raises, and the errors of :mod:`qsession.errors`. Cancelled: it is not
        done, or undone; one that waits for the disk is committed.
        """
        if self._is_simple(statement, options):
            if statement.kind is Kind.READ and self._access != "read":
                future = self._turn.enter()
                if future is not None:
                    await future
                outcome = self._read(statement)
                if outcome is not None:
                    return outcome
            elif statement.kind is Kind.WRITE and self._access != "read":
                return await self._write(statement, options, connection)
        return await spawn(self._in_transaction, statement, options, connection, None)

    def _is_simple(self, statement: Statement, options: Mapping[str, Any]) -> bool:
        simple = self._simple and "qsession_priority" not in options
        return simple and self._runner.is_short(statement.sql)

    # Reading.

    def _read(self, statement: Statement) -> Outcome | None:
        """None: it has to be done by a transaction, which has to wait for something."""
        pool = self.pool
        lease = None if pool.admission.is_shut else pool.ready_lease(holder=False)
        if lease is None:
            return None
        try:
            driver = lease.driver
            if driver.frozen:
                return None
            pool.check_file(driver)
            plan = Plan(statement, reads=True, budget=BUDGET)
            report = self._runner.run_here(driver, plan)
            if report is None or report.busy or report.refused:
                return None
            if report.error is not None:
                self._look_at(report, lease)
                raise pool.explain(report.error)
            return report.outcome
        finally:
            lease.end()

    def _look_at(self, report: Report, lease: Lease) -> None:
        """After an error: what became of the connection."""
        assert report.error is not None
        if errors.sqlite_code(report.error) in _SUSPECT:
            lease.driver.suspect = True
        if report.in_transaction:
            lease.tidy(sending.clean_up)

    # Writing.

    async def _write(
        self,
        statement: Statement,
        options: Mapping[str, Any],
        connection: RoutedConnection | None,
    ) -> Outcome:
        pool, queue, settings = self.pool, self.pool.write_queue, self.pool.settings
        lone = LoneWrite(statement, self)
        ticket = lone.ticket
        settle(queue.queue, queue.identity, lone, reads=False)
        pool.admission.enter(lone)
        try:
            self._ask(lone)
            if ticket.state is not TicketState.REFUSED:
                timeout = None
                if ticket.state is not TicketState.RELEASED:
                    timeout = settings.queue_timeout
                    queue.watch.start(waits=not isinstance(_owner(queue), LoneWrite))
                await queue.queue.answer(ticket, lone.future, timeout)
            if lone.outcome is None and lone.error is None:
                queue.refuse(ticket, settings)
                return await spawn(self._in_transaction, statement, options, connection, lone)
        finally:
            pool.admission.leave(lone)
        if lone.syncer is not None:
            await self._after_sync(lone)
        error, lone.error = lone.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        assert lone.outcome is not None
        return lone.outcome

    async def _after_sync(self, lone: LoneWrite) -> None:
        failure: Exception | None = lone.future.result()
        if failure is not None:
            assert lone.syncer is not None
            assert lone.driver is not None
            with suppress(Exception):  # if the file is gone, the next one opens it anew
                self.pool.check_file(lone.driver, again=True)
            raise lone.syncer.unconfirmed(failure) from failure
        turn = self._turn.enter(holder=True)  # one fsync may have answered many
        if turn is not None:
            await turn

    def _ask(self, lone: LoneWrite) -> None:
        """Ask for the ticket; run it now if it is free."""
        served, self._serves = self._serves, True
        self._thread = get_ident()
        try:
            self.pool.write_queue.queue.take(lone.ticket, self.pool.settings.max_waiting)
        finally:
            self._serves = served
        if lone.ticket.held and not served:
            self._serve()

    def go_on_with(self, lone: LoneWrite) -> bool:
        """It has been granted the ticket. In whatever thread; False if the loop is closed."""
        self._granted.append(lone)
        try:
            if get_ident() != self._thread:
                self.loop.call_soon_threadsafe(self._serve)
            elif not self._serves:
                self.loop.call_soon(self._serve)
        except RuntimeError:
            self._granted.remove(lone)
            self.pool.admission.leave(lone)  # which keeps it, and what waits for it, alive
            return False
        return True

    def _serve(self, *let_in: Any) -> None:
        """Run the one that holds the ticket, and those it passes on to, while the turn lasts."""
        pool = self.pool
        self._serves, pool.gathers = True, self._thread
        pool.write_queue.more_to_come = True
        later: asyncio.Future[None] | None = None
        try:
            while self._granted:
                later = None if let_in else self._turn.enter(holder=True)
                if later is not None:
                    later.add_done_callback(self._serve)
                    return
                let_in = ()
                self._do(self._granted.popleft())
        finally:
            self._serves, pool.gathers = False, None
            if self._granted and later is None:  # interrupted from the keyboard
                self.loop.call_soon(self._serve)
            if not self._looks:
                self._looks = True
                self.loop.call_soon(self._look)

    def _look(self) -> None:
        """The tasks that were about to go on have had their step: sync, unless they write as well.

        Each sync answers all who have committed before it.
        """
        self._looks = False
        queue, syncer = self.pool.write_queue, self.pool.running_syncer
        queue.no_more_to_come()
        more = not queue.is_idle or self._turn.busy
        if syncer is not None:
            (syncer.gather if more else syncer.hurry)()

    def _do(self, lone: LoneWrite) -> None:
        """Run it and pass the ticket on, or leave both to its task."""
        queue, ticket, runs = self.pool.write_queue, lone.ticket, False
        try:
            if ticket.held:  # else it was taken away, or its task was cancelled
                lone.has_turn = queue.turn.take_now()
                runs = lone.has_turn and ticket.claim()
                if lone.has_turn and not runs:  # the turn is for whoever has the ticket now
                    queue.queue.if_free(partial(queue.turn.release, False))
        finally:
            if not runs:
                lone.answer()
        if runs:
            self._run(lone)

    def _run(self, lone: LoneWrite) -> None:
        pool = self.pool
        lease: Lease | None = None
        try:
            lease = pool.ready_lease(holder=True)
            report = None if lease is None else self._report(lone, lease)
            if lease is None or report is None:
                if lease is not None:
                    lease.end()
                lone.answer()  # it is for its task, which has the ticket
                return
            when = self._take_note(lone, lease, report)
        except BaseException as error:
            self._pass_on(lone, lease, When.NOT)
            lone.error = (
                error
                if isinstance(error, Exception)
                else errors.QSessionError(f"{lone.last_statement!r} was interrupted by {error!r}.")
            )
            lone.answer()
            if not isinstance(error, Exception):
                raise
            return
        try:
            self._pass_on(lone, lease, when)
        finally:  # even if the connection cannot be given back
            if lone.syncer is None:
                lone.answer()
            elif not lone.future.done():
                lone.syncer.enlist(lone.commit, lone.future)

    def _report(self, lone: LoneWrite, lease: Lease) -> Report | None:
        """What came of the statement; None: it has to be done by a transaction."""
        driver = lease.driver
        if driver.query_only is not False or driver.frozen:
            return None
        if driver.syncer is not None and driver.syncer.failed:
            return None
        self.pool.check_file(driver)
        report = self._runner.run_here(driver, Plan(lone.statement, budget=LONG_WRITE))
        return None if report is None or report.busy else report

    def _take_note(self, lone: LoneWrite, lease: Lease, report: Report) -> When:
        """It has been committed, or has failed. When a checkpoint is due."""
        pool, driver = self.pool, lease.driver
        if report.error is not None:
            self._look_at(report, lease)
            lone.error = pool.explain(report.error)
            if not report.changed:
                return When.NOT
        lone.outcome = report.outcome
        pool.write_queue.counters.commits += 1
        if driver.sync is Sync.SHARED:
            lone.driver, lone.syncer = driver, pool.syncer(driver)
            lone.commit = lone.syncer.committed()
        return pool.checkpointer.due()

    def _pass_on(self, lone: LoneWrite, lease: Lease | None, when: When) -> None:
        """Give back the connection, then the ticket, behind a checkpoint where one is due."""
        pool = self.pool
        pool.admission.leave(lone)
        if lease is not None and when is When.HOLDING:
            done = partial(_pass_on, pool.write_queue, lone.ticket, lease)
            lone.ticket.detached = True
            lease.driver.post(pool.checkpointer.run, done=done)
            return
        try:
            if lease is not None and when is When.AFTER:
                lease.driver.post(pool.checkpointer.run, done=lease.end)
            elif lease is not None:
                lease.end()
        finally:
            pool.write_queue.release(lone.ticket)

    # What is not simple.

    def _in_transaction(
        self,
        statement: Statement,
        options: Mapping[str, Any],
        connection: RoutedConnection | None,
        lone: LoneWrite | None,
    ) -> Outcome:
        """In a greenlet. ``lone``: what has the ticket, or had it until it was taken away."""
        if connection is not None:
            return self._on(connection, statement, options, lone)
        own = RoutedConnection(self.pool) if lone is not None else self.pool.connect()
        assert isinstance(own, RoutedConnection)
        try:
            own.isolation_level = "AUTOCOMMIT"
            return self._on(own, statement, options, lone)
        except BaseException as error:
            if not isinstance(error, Exception):
                own.invalidate(error)
            raise
        finally:
            own.close()

    def _on(
        self,
        connection: RoutedConnection,
        statement: Statement,
        options: Mapping[str, Any],
        lone: LoneWrite | None,
    ) -> Outcome:
        if lone is not None:
            self._take_over(lone, connection.transaction)
        return connection.transaction.execute(statement, options)

    def _take_over(self, lone: LoneWrite, transaction: Transaction) -> None:
        """Let a transaction go on with what a lone write has, and wait for the turn if it must."""
        pool, queue, ticket = self.pool, self.pool.write_queue, lone.ticket
        pool.admission.hand_over(lone, transaction)
        transaction.last_statement = lone.last_statement
        transaction.runner.use_here()
        ticket.owner, ticket.on_granted = transaction, None
        try:
            if ticket.held and not lone.has_turn:
                queue.wait_for_turn(ticket, pool.settings)
        except BaseException:
            pool.admission.leave(transaction)
            raise
        if ticket.held:
            transaction.work.ticket = ticket


def _owner(queue: WriteQueue) -> object:
    """Who holds the ticket."""
    holder = queue.queue.holder
    return None if holder is None else holder.owner


def _pass_on(queue: WriteQueue, ticket: Ticket, lease: Lease) -> None:
    """Behind a checkpoint, in the thread of the connection."""
    try:
        lease.end()
    finally:
        queue.release(ticket)
