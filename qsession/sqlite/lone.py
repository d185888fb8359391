"""Lone statements: each is a separate transaction, and most need no greenlet.

A SELECT that is known to be short runs directly in its task. A write that is known to be short asks
for the ticket. When it gets the ticket, its loop runs it, and its task wakes only once, when the
disk has confirmed the commit. So several waiting writes run in one turn of the loop, each with its
own ticket and COMMIT. All other statements, and those that turn out not to be simple, run in a
transaction in a greenlet, with the ticket if it was already granted.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Mapping
from functools import partial
from threading import get_ident
from typing import Any, cast

from qsession import errors, events
from qsession.sqlite.changes.commits import Witness
from qsession.sqlite.connection import RoutedConnection
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.pace import BUDGET, LONG_WRITE
from qsession.sqlite.driver.physical import SUSPECT
from qsession.sqlite.durability.checkpoint import When
from qsession.sqlite.pool import WriteQueuePool
from qsession.sqlite.queue.nesting import settle
from qsession.sqlite.queue.write_queue import WriteQueue
from qsession.sqlite.transaction import sending
from qsession.sqlite.transaction.commit import Commit
from qsession.sqlite.transaction.plan import Plan
from qsession.sqlite.transaction.runner import Runner
from qsession.sqlite.transaction.sending import Outcome, Report
from qsession.sqlite.transaction.statement import Kind, Statement
from qsession.sqlite.transaction.transaction import Transaction
from qsession.waiting.greenlets import spawn
from qsession.waiting.pacing import turns
from qsession.waiting.ticket import Ticket, TicketState

_NOT_GRANTED = {TicketState.EXPIRED: "timeout", TicketState.REFUSED: "full"}
"""How a wait for the ticket has ended, in events."""


class LoneWrite:
    """A write that waits for the ticket or for the disk. It is the owner of its ticket.

    It never idles with the ticket, so other writers wait for it only briefly.
    """

    __slots__ = (
        "_task",
        "commit",
        "error",
        "future",
        "has_turn",
        "lane",
        "last_statement",
        "outcome",
        "statement",
        "ticket",
    )

    wrote = False
    locked_by_driver = False
    promised = insists = True
    activity = 0
    site = None
    stack = ()
    snapshot_since = None

    def __init__(self, statement: Statement, lane: Lane) -> None:
        self.statement = statement
        self.last_statement = statement.sql
        self.lane = lane
        self._task = weakref.ref(cast("asyncio.Task[Any]", asyncio.current_task(lane.loop)))
        self.ticket: Ticket = Ticket(self)
        self.ticket.on_granted = self._granted
        self.future: asyncio.Future[Any] = self.ticket.prepare(lane.loop)
        """The future that its task awaits."""
        self.has_turn = False
        """Whether it has the turn on the file with the ticket."""
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.commit: Commit | None = None

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that waits for it; None if it was collected."""
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
        """No action: its loop stood still, and its task asks again."""

    def abandon(self, failure: Exception | None = None) -> None:
        """Give the ticket back, because its loop is closed. Only a checkpoint of it may run."""
        self.lane.pool.write_queue.queue.leave(self.ticket)

    def give_up_snapshot(self) -> bool:
        return False

    def _granted(self) -> bool:
        return not self.future.cancelled() and self.lane.go_on_with(self)

    def answer(self) -> None:
        """Wake its task."""
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
        """Writes that got the ticket. Only the last one may still hold it."""
        self._thread = 0
        """The thread of the loop. Before Python 3.12, asking for the running loop is a system call.
        """
        self._serves = False
        self._looks = False
        """Whether a check for more writes is scheduled."""
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

        ``connection``: the connection, in autocommit mode, for a statement that is not simple, if
        such statements must use the same one each time.

        Raises the errors of SQLite and of :mod:`qsession.errors`. If cancelled, the statement is
        not run, or rolled back, unless it already waits for the disk; then it is committed.
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
        """Run a SELECT. None: a transaction must run it, because it has to wait."""
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
        """After an error: check the connection."""
        assert report.error is not None
        if errors.sqlite_code(report.error) in SUSPECT:
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
        timeout: float | None = None
        settle(queue.queue, queue.identity, lone, reads=False)
        pool.admission.enter(lone)
        try:
            try:
                self._ask(lone)
                if ticket.state is not TicketState.REFUSED:
                    if ticket.state is not TicketState.RELEASED:
                        timeout = settings.queue_timeout
                        queue.watch.start(waits=not isinstance(_owner(queue), LoneWrite))
                    await queue.queue.answer(ticket, lone.future, timeout)
            except BaseException:
                queue.queue.leave(ticket)  # what has failed is not done later
                raise
            if lone.outcome is None and lone.error is None:
                queue.refuse(ticket, settings)
                return await spawn(self._in_transaction, statement, options, connection, lone)
        finally:
            pool.admission.leave(lone)
            if events.observers:
                self._tell(lone, waited=timeout is not None)
        commit = lone.commit
        if commit is not None and commit.waits:
            failure: Exception | None = lone.future.result()
            if failure is not None:
                raise commit.unconfirmed(failure) from failure
            turn = self._turn.enter(holder=True)  # one fsync may wake many tasks
            if turn is not None:
                await turn
        error, lone.error = lone.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        assert lone.outcome is not None
        return lone.outcome

    def _tell(self, lone: LoneWrite, waited: bool) -> None:
        """Tell the subscribers of events how long it waited for the ticket and for the disk.

        Its task wakes only once, for both.
        """
        ticket, now = lone.ticket, time.monotonic()
        if waited or ticket.state is TicketState.REFUSED:
            outcome = (
                "granted" if ticket.granted_at else _NOT_GRANTED.get(ticket.state, "cancelled")
            )
            until = ticket.granted_at or now
            seconds = until - ticket.asked_at
            self.pool.write_queue.tell_of_wait(ticket, seconds, outcome, ago=now - until)
        commit = lone.commit
        if commit is not None and commit.waits and commit.at:
            if not lone.future.done() or lone.future.cancelled():
                outcome = "cancelled"
            else:
                outcome = "confirmed" if lone.future.result() is None else "failed"
            commit.tell(outcome)

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
        """Schedule a write that has got the ticket. Any thread; False if the loop is closed."""
        self._granted.append(lone)
        try:
            if get_ident() != self._thread:
                self.loop.call_soon_threadsafe(self._serve)
            elif not self._serves:
                self.loop.call_soon(self._serve)
        except RuntimeError:
            self._granted.remove(lone)
            self.pool.admission.leave(lone)  # or it, and its task, would stay alive
            return False
        return True

    def _serve(self, *let_in: Any) -> None:
        """Run the write that holds the ticket, and those that get it next, while the turn lasts."""
        pool, later = self.pool, None
        try:
            self._serves, pool.gathers = True, self._thread
            pool.write_queue.more_to_come = True
            while self._granted:
                later = None if let_in else self._turn.enter(holder=True)
                if later is not None:
                    later.add_done_callback(self._serve)
                    return
                let_in = ()
                self._do(self._granted[0])
        finally:
            self._serves, pool.gathers = False, None
            if self._granted and later is None:  # interrupted from the keyboard
                self.loop.call_soon(self._serve)
            if not self._looks:
                self._looks = True
                self.loop.call_soon(self._look)

    def _look(self) -> None:
        """Sync, unless tasks that have just continued write as well.

        Each sync confirms all commits before it.
        """
        self._looks = False
        queue, syncer = self.pool.write_queue, self.pool.running_syncer
        queue.no_more_to_come()
        more = not queue.is_idle or self._turn.busy
        if syncer is not None:
            (syncer.gather if more else syncer.hurry)()

    def _do(self, lone: LoneWrite) -> None:
        """Run it and pass the ticket on, or leave both to its task."""
        lease: Lease | None = None
        try:
            self._granted.popleft()
            if not self._may_run(lone):
                lone.answer()
                return
            lease = self.pool.ready_lease(holder=True)
            report = None if lease is None else self._report(lone, lease)
            if lease is None or report is None:
                if lease is not None:
                    lease.end()
                lone.answer()  # its task runs it, with the ticket
                return
            if report.error is not None:
                self._look_at(report, lease)
                lone.error = self.pool.explain(report.error)
            if report.error is None or report.changed:
                lone.outcome, lone.commit = report.outcome, Commit(self.pool, lease.driver)
        except BaseException as error:
            self._pass_on(lone, lease)
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
            self._pass_on(lone, lease)
        finally:  # even if the connection cannot be given back
            commit = lone.commit
            if commit is None or not commit.waits:
                lone.answer()
            elif not lone.future.done():
                commit.enlist(lone.future)

    def _may_run(self, lone: LoneWrite) -> bool:
        """Whether it has both the ticket, which nobody can take away any more, and the turn."""
        queue, ticket = self.pool.write_queue, lone.ticket
        if not ticket.held:  # it was taken away, or its task was cancelled
            return False
        lone.has_turn = queue.turn.take_now()
        if lone.has_turn and ticket.claim():
            return True
        if lone.has_turn:  # the turn belongs to the new holder, if any
            queue.queue.if_free(partial(queue.turn.release, False))
        return False

    def _report(self, lone: LoneWrite, lease: Lease) -> Report | None:
        """Run the statement and report; None: a transaction must run it."""
        driver = lease.driver
        if driver.query_only is not False or driver.frozen:
            return None
        if driver.syncer is not None and driver.syncer.failed:
            return None
        self.pool.check_file(driver)
        plan = Plan(lone.statement, budget=LONG_WRITE)
        commits = self.pool.write_queue.commits
        if commits.observed:
            sent = {lone.statement.sql: lone.statement.parameters}
            plan.witness = Witness(commits, driver, sent)
        report = self._runner.run_here(driver, plan)
        return None if report is None or report.busy else report

    def _pass_on(self, lone: LoneWrite, lease: Lease | None) -> None:
        """Give back the connection and the ticket, after a checkpoint if it needs the ticket."""
        pool, ticket, commit = self.pool, lone.ticket, lone.commit
        try:
            pool.admission.leave(lone)
            if lease is not None and commit is not None and commit.keeps_ticket:
                done = partial(pool.write_queue.release_after, lease, ticket)
                lease.driver.post(commit.work, done=done)
                ticket.detached = True
            elif lease is not None and commit is not None and commit.due is When.AFTER:
                lease.driver.post(pool.checkpointer.run, done=lease.end)
            elif lease is not None:
                lease.end()
        finally:
            if not ticket.detached:
                pool.write_queue.release(ticket)

    # Statements that are not simple.

    def _in_transaction(
        self,
        statement: Statement,
        options: Mapping[str, Any],
        connection: RoutedConnection | None,
        lone: LoneWrite | None,
    ) -> Outcome:
        """Run it in a transaction. In a greenlet. ``lone``: the write that has had the ticket."""
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
        """Give a transaction what a lone write has, and wait for the turn if necessary."""
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
    """The owner of the held ticket."""
    holder = queue.queue.holder
    return None if holder is None else holder.owner
