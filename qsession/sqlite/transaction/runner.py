"""Runner: where and when the statements of one connection run.

A statement that is known to be short runs on the event loop, in its turn. Any other statement runs
in the connection's thread.
"""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from greenlet import getcurrent
from sqlalchemy.util import await_only

from qsession import errors
from qsession.sqlite.driver.pace import BUDGET, STEPS, Pace
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.transaction import sending
from qsession.sqlite.transaction.plan import Plan
from qsession.sqlite.transaction.sending import Report
from qsession.sqlite.transaction.statement import SAVEPOINTS, Statement
from qsession.sqlite.transaction.work import Work
from qsession.statistics import Counters
from qsession.waiting.callers import Caller, current_caller
from qsession.waiting.greenlets import KeptGreenlet
from qsession.waiting.handoff import this_loop
from qsession.waiting.pacing import LoopTurn, turns

FEW = 20
"""Parameter sets of an executemany that may run on the loop before its time is known."""


class Runner:
    """The statements of one connection, one at a time."""

    __slots__ = ("_admitted", "_counters", "_mark", "_pace", "_task", "_turn", "loop", "reading")

    def __init__(self, pace: Pace, counters: Counters) -> None:
        self._pace = pace
        self._counters = counters
        self._task: Callable[[], Caller | None] | None = None
        self._mark: object | None = None
        """A mark on the greenlet that used it last, which runs for one task only."""
        self._turn: LoopTurn | None = None
        self._admitted: object | None = None
        """The turn of the loop that admitted its connection; it also admits the first statement."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop that used it last."""
        self.reading: tuple[DriverConnection, float, float] | None = None
        """The connection of a running SELECT, and its start in processor time and clock time."""

    def admit(self) -> None:
        """Wait for a turn of the loop, for a connection that is handed out. In a greenlet."""
        self.use_here()
        turn, greenlet = self._turn, getcurrent()
        assert turn is not None
        _await_in(greenlet, turn.enter())
        self._mark_on(greenlet)
        self._admitted = turn.mark

    def use_in_greenlet(self) -> None:
        """As :meth:`use_here`, once for each greenlet. Raises ``MissingGreenlet`` outside of one.

        It also awaits something, as SQLAlchemy requires (https://sqlalche.me/e/20/xd1r).
        """
        mark, greenlet = self._mark, getcurrent()
        if mark is None or getattr(greenlet, "qsession_mark", None) is not mark:
            _await_in(greenlet, None)
            self.use_here()
            self._mark_on(greenlet)

    def _mark_on(self, greenlet: Any) -> None:
        # No reference to the greenlet itself, which must be collected if it waits for ever.
        self._mark = greenlet.qsession_mark = object()

    def use_here(self) -> None:
        """Record the task and the loop that use it."""
        loop = this_loop()
        caller = current_caller(loop)
        if self._task is None or caller is not self._task():
            self._task = weakref.ref(caller) if isinstance(caller, asyncio.Task) else lambda: caller
        if loop is not self.loop:
            self.loop, self._turn = loop, turns.of(loop)

    @property
    def task(self) -> Caller | None:
        """The caller that used it last; None if there was none, or its task was collected."""
        return None if self._task is None else self._task()

    def reads_for(self) -> tuple[float, float]:
        """How long the present SELECT has run: processor time and clock time, in seconds."""
        reading = self.reading
        if reading is None:
            return 0.0, 0.0
        driver, own, since = reading
        return driver.thread_time() - own, time.monotonic() - since

    @property
    def crowded(self) -> bool:
        """Whether other tasks wait for a turn of this loop, and may commit soon as well."""
        return self._turn is not None and self._turn.waiting > 0

    def pace(self, holder: bool) -> bool:
        """Wait for a later turn of the loop, if this one is over. Whether it has waited."""
        turn, admitted = self._turn, self._admitted
        assert turn is not None
        if admitted is not None:
            self._admitted = None
            if admitted is turn.mark:
                return False
        future = turn.enter(holder)
        if future is None:
            return False
        await_only(future)
        return True

    def run(
        self, driver: DriverConnection, plan: Plan, work: Work, check: Callable[[Work], None]
    ) -> Report:
        """Carry out a plan of a transaction, on the loop or in the thread.

        ``check`` raises if the transaction has ended. It is called after each wait, before anything
        is sent, because another transaction may have the connection by then. If cancelled in the
        thread, the plan is not begun, or it is interrupted and not waited for.
        """
        if self._is_short(driver, plan):
            waited = self.pace(work.holds)
            if waited:
                check(work)
            if not waited or driver.quiet:  # else another task was faster
                report = self.run_here(driver, plan)
                if report is not None:
                    return report
        report = Report()
        if plan.reads:
            self.reading = driver, driver.thread_time(), time.monotonic()
        try:
            run = sending.run if plan.witness is None else sending.run_witnessed
            driver.run(run, plan, report)
        finally:
            self.reading = None
        if report.spent is not None and not report.refused:
            self._learn(plan.statement, report.spent)
        self.pace(work.holds)
        return report

    def rows_at_once(self, sql: str, first: bool) -> int | None:
        """How many rows of a long executemany are sent next; None for all remaining ones.

        Short rows run in slices on the loop: ``sqlite3`` releases the interpreter lock at each row,
        and in the thread it may wait 5 ms to get it back from a busy loop.
        """
        return FEW if first and self._pace.enabled else self._pace.rows(sql, FEW) or None

    def is_short(self, sql: str) -> bool:
        """Whether a text is known to be short enough for the loop."""
        return self._pace.inline(sql)

    def _is_short(self, driver: DriverConnection, plan: Plan) -> bool:
        """Whether a statement is known to be short enough for the loop."""
        statement = plan.statement
        if statement.stream is not None or not driver.quiet:
            return False
        if plan.validates and plan.version is None:
            return False  # it certainly repeats all reads
        if statement.many and len(statement.parameters) > FEW:
            return len(statement.parameters) <= self._pace.rows(statement.sql, FEW)
        if statement.kind in SAVEPOINTS:
            return self._pace.enabled
        return self._pace.inline(statement.sql)

    def run_here(self, driver: DriverConnection, plan: Plan) -> Report | None:
        """Run it on the loop, while the thread is idle.

        After the time that the plan allows, SQLite interrupts it, and rolls back the whole
        transaction of a write (https://sqlite.org/c3ref/interrupt.html). None: it must run in the
        thread.
        """
        assert self._turn is not None
        raw, budget = driver.raw, plan.budget
        own, began = self._turn.processor_time(), time.perf_counter()
        run = sending.run if plan.witness is None else sending.run_witnessed
        if budget is None:
            report = run(raw, plan, Report(), False)
        else:
            deadline = began + budget
            try:  # from here on: a handler that stays would interrupt later statements
                # True interrupts: https://sqlite.org/c3ref/progress_handler.html
                raw.set_progress_handler(lambda: time.perf_counter() > deadline, STEPS)
                report = run(raw, plan, Report(), False)
            finally:
                raw.set_progress_handler(None, 0)
        took = time.perf_counter() - began
        if took > BUDGET:  # a short wait comes from the machine, a long one from the statement
            busy = time.thread_time() - own
            own = busy if took - busy <= 2 * sys.getswitchinterval() else took
        else:
            own = took
        if took > self._counters.longest_inline:
            self._counters.longest_inline = took
        if report.error is None:
            self._learn(plan.statement, own)
            return report
        if not report.refused:
            self._learn(plan.statement, own)
        broken_off = plan.budget and report.code == _INTERRUPT
        undone = plan.in_transaction and not report.in_transaction
        return None if broken_off and not undone else report

    def _learn(self, statement: Statement, seconds: float) -> None:
        if statement.many and len(statement.parameters) > FEW:
            seconds *= FEW / len(statement.parameters)
        self._pace.note(statement.sql, seconds)

    def commit(
        self, driver: DriverConnection, cursors: list[Any], witness: Any = None
    ) -> sending.Ended:
        """Send COMMIT: on the loop if COMMITs are short, else in the thread, to its end.

        ``witness``: what tells the observers of the file, if there are any.
        """
        commit = sending.commit if witness is None else partial(witness.around, sending.commit)
        if not cursors and driver.quiet and self._pace.inline("COMMIT"):
            ended = commit(driver.raw)
        else:
            ended = driver.run_to_end(commit, cursors)
        if not cursors:
            self._pace.note("COMMIT", ended.took)
        return ended


_INTERRUPT = errors.SQLITE_INTERRUPT


def _await_in(greenlet: Any, future: asyncio.Future[None] | None) -> None:
    """Await a future; without one, what does not wait, as SQLAlchemy's own greenlets require."""
    if future is not None:
        await_only(future)
    elif not isinstance(greenlet, KeptGreenlet):
        await_only(READY)


class _Ready:
    """An awaitable that does not wait: SQLAlchemy requires that a statement awaits something."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


READY = _Ready()
