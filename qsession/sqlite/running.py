"""Running: where a statement runs: on the loop or in the thread, alone or in a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from dataclasses import replace

from sqlalchemy.util import await_only

from qsession.errors import SQLITE_INTERRUPT, sqlite_code
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.driver.processor import Spent
from qsession.sqlite.group import JOIN
from qsession.sqlite.lease import Lease, WriterLease
from qsession.sqlite.log import Entry, Outcome, Report, Statement, close_unclaimed, run
from qsession.sqlite.need import Need
from qsession.sqlite.pace import BUDGET, Who
from qsession.sqlite.place import BUSY_RETRY, Place, State

FEW = 20
"""Parameter sets of an executemany that may run on the loop at once."""
LONG_WRITE = 0.01
"""Seconds on the loop after which a write is broken off, to be run in the thread."""


class Running(Place):
    """A place that statements run in."""

    __slots__ = ()

    def run(self, statement: Statement, begins: bool = True) -> Report:
        """Run a statement where the transaction is attached, behind BEGIN and replay if need be.

        A long executemany runs in slices, each of which may run on the loop: in the thread it
        would wait for Python's interpreter lock at every row while the loop is busy. A lock that a
        process without qsession holds is waited for. Raises :class:`QueueTimeout`.
        """
        if statement.need.leaves_settings:
            self.keep_connection()
        if statement.many and begins and len(statement.parameters) > FEW:
            return self._run_in_slices(statement)
        return self._run(statement, begins)

    def _run_in_slices(self, statement: Statement) -> Report:
        whole = Outcome(rowcount=0)
        done = 0
        while True:
            self.enter_turn(spent=not done)  # SQLAlchemy made all the parameters ready in this one
            part = self._slice(statement, done)
            report = self._run(part, begins=True)
            if report.outcome is None:
                report.changed = report.changed or whole.changed
                return report
            whole.add(report.outcome)
            done += len(part.parameters)
            if done >= len(statement.parameters):
                report.outcome = whole
                return report

    def _slice(self, statement: Statement, done: int) -> Statement:
        """What comes next: a few rows, to learn or on the loop; or all the rest, in the thread."""
        pace = self._pool.pace
        few = pace.enabled if done == 0 else pace.inline(statement.sql, reads=False)
        rows = statement.parameters[done : done + FEW if few else None]
        return replace(statement, parameters=rows, alone=True)

    def _run(self, statement: Statement, begins: bool) -> Report:
        lease = self.lease
        assert lease is not None
        driver = lease.driver
        assert not isinstance(lease, WriterLease) or self.writer.queue.holder is lease.ticket
        if not self.began:
            self._check_file(driver)
        only_reads = self.state is State.READING or statement.need is Need.READ
        here = self._is_short(statement, begins, only_reads)
        deadline: float | None = None
        while True:
            here = here and driver.quiet and not (begins and self._has_to_replay())
            report = self._send(lease, statement, begins, here, only_reads)
            if here and report.error is not None and _broken_off(report.error):
                if self._is_gone(lease, report):
                    return report
                here = False  # it was over its budget: once more, in the thread
                continue
            if driver.frozen:
                self._pool.check_file(driver)
            if not report.busy:
                return report
            if deadline is None:
                deadline = time.monotonic() + self.settings.queue_timeout
            elif time.monotonic() >= deadline:
                raise self.lock_timeout(statement.sql)
            await_only(asyncio.sleep(BUSY_RETRY))

    def _is_gone(self, lease: Lease, report: Report) -> bool:
        """Whether what had been begun was rolled back with it, as by a write broken off."""
        joined = isinstance(lease, WriterLease) and lease.joined_at is not None
        return (self.began or joined) and not report.in_transaction

    def enter_turn(self, begins: bool = False, spent: bool = False) -> None:
        """Wait for a later turn of the loop if this one is over, or spoken for, or ``spent``.

        ``begins``: it is a reader that begins, and has nothing attached yet.
        """
        turn, lease = self.turn, self.lease
        assert turn is not None
        if spent or turn.over or (begins and turn.spoken_for):
            ends = self.ends
            await_only(turn.later(Who.HOLDER if self.holds() else Who.OTHER))
            if self.ends != ends or (lease is not None and lease.ended):
                raise self._ended_elsewhere()
        turn.begin(reader=begins)

    def _check_file(self, driver: DriverConnection) -> None:
        """Look whether the file is still there, once in a turn of the loop.

        Who waited, for the ticket or a reader, comes in a turn that may not have begun: it looks.
        """
        assert self.turn is not None
        now = self.turn.mark, driver.identity
        if now[0] is None or self._pool.looked != now:
            self._pool.check_file(driver)
            self._pool.looked = now

    def _is_short(self, statement: Statement, begins: bool, only_reads: bool) -> bool:
        """Whether a statement is known to be short enough for the loop."""
        if statement.stream is not None or (statement.many and len(statement.parameters) > FEW):
            return False
        if not (begins or only_reads):
            return False  # it commits by itself, and a COMMIT waits for the disk
        if statement.need is Need.SAVEPOINT:
            return True
        return self._pool.pace.inline(statement.sql, only_reads)

    def _has_to_replay(self) -> bool:
        return not self.began and bool(self.log.entries)

    def _send(
        self, lease: Lease, statement: Statement, begins: bool, here: bool, only_reads: bool
    ) -> Report:
        """One attempt: on the loop if ``here``, else in the thread."""
        if here:
            await_only(READY)
        if isinstance(lease, WriterLease) and self.writer.group is not None:
            joins = begins and here and self._may_join(statement)
            here = here and joins
            self.meet_group(lease, joins)
        begin = None
        if self.pinned and not self.began:
            self.began = lease.driver.raw.in_transaction  # by whoever uses the driver's connection
        if begins and not self.began:
            begin = lease.begin
            if isinstance(lease, WriterLease) and self.writer.group is not None:
                begin, lease.joined_at = JOIN, time.monotonic()
        entries = self.log.entries if begin else []
        if here:
            budget = self._budget(lease, statement, only_reads)
            report = lease.driver.run_here(run, begin, entries, statement, budget=budget)
        else:
            report = self._run_in_thread(lease, begin, entries, statement)
        if report.spent is not None and not report.refused:  # else it has not shown what it takes
            self._learn(statement, report, report.spent, here)
        replayed = report.diverged is None and not report.half_replayed
        if begin is not None and report.in_transaction and replayed:
            self.began, self.unsure = True, None
            self.writer.counters.replays += bool(entries)
        return report

    def _budget(self, lease: Lease, statement: Statement, only_reads: bool) -> float | None:
        """Seconds a statement may take on the loop; None for as long as it likes.

        A text that has been short may be long this time: an UPDATE of more rows than before. SQLite
        rolls back the whole transaction with a write that is broken off, so none is but the first
        statement of one that has joined no group: there is nothing to replay.
        """
        if only_reads:
            return BUDGET
        first = not (self.began or self.log.entries or self.writer.group or lease.streams)
        return LONG_WRITE if first and not (statement.alone or self.pinned) else None

    def _learn(self, statement: Statement, report: Report, spent: Spent, here: bool) -> None:
        """Take note of how long a statement took."""
        pace, counters = self._pool.pace, self.writer.counters
        own, wall = spent
        if here:
            counters.longest_inline = max(counters.longest_inline, wall)
            if report.error is not None and _broken_off(report.error):
                pace.note_broken_off(statement.sql)
                return
        if statement.many and len(statement.parameters) > FEW:
            part = FEW / len(statement.parameters)
            own, wall = own * part, wall * part
        pace.note(statement.sql, own, wall, here)

    def _run_in_thread(
        self, lease: Lease, begin: str | None, entries: list[Entry], statement: Statement
    ) -> Report:
        try:
            report = lease.driver.run(run, begin, entries, statement)
            self.enter_turn()
        except BaseException:
            if statement.stream is not None:
                lease.driver.post(close_unclaimed, statement)  # before it is rolled back
            raise
        statement.unclaimed = None
        return report

    def _may_join(self, statement: Statement) -> bool:
        """Whether a statement may run in a group, and run again if the group has to."""
        need = statement.need
        if statement.alone or (need.is_of_the_writer and need is not Need.WRITE):
            return False
        return self._pool.pace.may_join(statement.sql)

    def keep_connection(self) -> None:
        """Have what is set from here on to itself: the writer goes on with another connection.

        A reader cannot be kept; it is closed when it is given back.
        """
        lease = self.lease
        if not isinstance(lease, WriterLease):
            assert lease is not None
            lease.driver.suspect = True
        elif lease.own is None:
            self.meet_group(lease, joins=False)
            own = self.writer.give_away(lease)
            if own is None:
                raise self._ended_elsewhere()
            self.own = lease.own = own

    def holds(self) -> bool:
        return self.state is State.HOLDING

    def meet_group(self, lease: WriterLease, joins: bool) -> None:
        """A group waits for its COMMIT: join it with short statements only, else send it off."""
        if joins:
            return
        if lease.joined_at is None:
            self.writer.close_group()
        else:
            self.leave_group()


class _Ready:
    """Awaited without waiting: SQLAlchemy insists that a statement awaits something."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


READY = _Ready()


def _broken_off(error: Exception) -> bool:
    return sqlite_code(error) == SQLITE_INTERRUPT
