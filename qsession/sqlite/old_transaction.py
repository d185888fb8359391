"""Transaction: what each statement of a connection does."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from qsession import errors
from qsession.config import check_access, check_priority
from qsession.sqlite.ending import Ending
from qsession.sqlite.log import Outcome, Statement, digest
from qsession.sqlite.need import Need
from qsession.sqlite.place import State
from qsession.sqlite.transaction.prediction import call_site
from qsession.sqlite.words import rolls_back_to, savepoints_after

if TYPE_CHECKING:
    from qsession.sqlite.driver.physical import DriverConnection


class Transaction(Ending):
    """The one transaction of a :class:`RoutedConnection`, over and over."""

    __slots__ = ()

    def execute(self, statement: Statement, options: Any) -> Outcome:
        """Run one statement where it belongs. In a greenlet.

        Raises what SQLite raises, and the errors of :mod:`qsession.errors`. Cancelled: the
        transaction is rolled back, in the background, and what it held is passed on.
        """
        self.wait_for_others()
        if self.failure is not None:
            if statement.need is Need.SAVEPOINT and rolls_back_to(statement.sql):
                return _nothing_sent()  # a session rolls back its savepoints one by one
            raise self.failure
        self.busy += 1
        self.last_statement = statement.sql
        self.used_here()
        try:
            return self._dispatch(statement, options)
        except BaseException as error:
            self._clean_up_after(error)
            raise
        finally:
            self.rest()

    def _clean_up_after(self, error: BaseException) -> None:
        """Keep no ticket for what was not begun, and nothing of what was cancelled."""
        if not isinstance(error, Exception):
            self.abandon(errors.QSessionError("The transaction was rolled back: it was cancelled."))
        elif self.state is State.HOLDING and not (self.began or self.pinned):
            self.detach_writer()

    def pin(self) -> DriverConnection:
        self._begins_by_hand()
        self.busy += 1
        try:
            return super().pin()
        except BaseException as error:
            self._clean_up_after(error)
            raise
        finally:
            self.rest()

    def _dispatch(self, statement: Statement, options: Any) -> Outcome:
        need = statement.need
        if need is Need.COMMIT or need is Need.ROLLBACK:
            self.commit() if need is Need.COMMIT else self.rollback()
            return _nothing_sent()
        if self.lease is None and need in (Need.BEGIN, Need.BEGIN_WRITE):
            self._begins_by_hand()
            if need is Need.BEGIN_WRITE:
                self._access = "write"
            return _nothing_sent()
        if self.lease is None and need is Need.SAVEPOINT:
            nothing = _nothing_sent()
            self.log.append(statement, digest(nothing))  # the first statement will replay it
            self._follow_savepoints(statement)
            return nothing
        if self.autocommit and not (self._by_hand or self._savepoints):
            return self._execute_alone(statement, options)  # it is its own transaction
        outcome = self._execute(statement, options)
        if need is Need.SAVEPOINT:
            self._follow_savepoints(statement)
        return outcome

    def _begins_by_hand(self) -> None:
        self._by_hand = not self._savepoints  # else it is an error of the application's

    def _follow_savepoints(self, statement: Statement) -> None:
        """Under AUTOCOMMIT the outermost savepoint is BEGIN, and its RELEASE is COMMIT."""
        if not self.autocommit or self._by_hand:
            return
        self._savepoints = savepoints_after(self._savepoints, statement.sql)
        if not self._savepoints:
            try:
                self.commit()
            except BaseException:
                self.rollback()  # the savepoint is gone: there is nothing to go back to
                raise

    def _execute(self, statement: Statement, options: Any) -> Outcome:
        if self.first is None:
            self._take_options(options)
            self.first = statement.sql
        begins = self.began or bool(self.log.entries) or not statement.need.runs_outside
        while True:
            if self._place(statement.need) is State.READING:
                self.enter_turn(begins=self.lease is None)
                self.attach_reader()
            else:
                self._refuse_to_write(statement)
                self._attach_writer_in_turn(statement)  # or a reader, behind a stalled holder
            on_reader = self.state is State.READING
            report = self.run(statement, begins)
            if report.error is None or not (on_reader and report.refused):
                return self._settle(statement, report)
            statement.need = Need.WRITE  # the database said so

    def _attach_writer_in_turn(self, statement: Statement) -> None:
        """Who has to wait for the ticket need not wait for a turn of the loop as well."""
        if self.holds() or self.writer.queue.holder is None:
            self.enter_turn()
        self.attach_writer(statement)

    def _place(self, need: Need) -> State:
        """Whether a statement goes to a reader (READING) or to the writer (HOLDING)."""
        on_writer = need.is_of_the_writer or self.own is not None
        if self.state is State.HOLDING or (on_writer and self._access != "read"):
            return State.HOLDING
        if self.state is State.READING or self._access == "read":
            return State.HOLDING if need in (Need.WRITE, Need.TEMP) else State.READING
        if self._access == "write" or self.state is State.SUSPENDED:
            return State.HOLDING
        assert self.first is not None
        prediction = self.writer.prediction
        if self.site is None and prediction.knows(self.first):
            self.site = call_site(self.first)
        return State.HOLDING if prediction.writes(self.first, self.site) else State.READING

    def _refuse_to_write(self, statement: Statement) -> None:
        if self._access == "read":
            raise errors.ReadOnlyError(
                f"A transaction with access='read' cannot write: {statement.sql!r}. Use qsession() "
                "or access='auto' for a transaction that writes."
            )

    def _execute_alone(self, statement: Statement, options: Any) -> Outcome:
        self._take_options(options)
        try:
            outcome = self._run_alone(statement, options)
        except Exception:
            self._end()
            raise
        self._end()
        return outcome

    def _take_options(self, options: Any) -> None:
        if self._access is None:
            access = options.get("qsession_access", self.settings.access)
            self._access = check_access("qsession_access", access)
        self.priority = check_priority("qsession_priority", options.get("qsession_priority", 0))

    def _run_alone(self, statement: Statement, options: Any) -> Outcome:
        prediction = self.writer.prediction
        reads = statement.need.may_only_read and self.own is None
        if (reads and not prediction.is_refused(statement.sql)) or self._access == "read":
            self.enter_turn(begins=True)
            self.attach_reader()
            report = self.run(statement, begins=False)
            if not report.refused:
                return self._settle(statement, report)
            prediction.note_refused(statement.sql)
            self.detach_reader()
        self._refuse_to_write(statement)
        if statement.need.may_only_read:
            statement.need = Need.WRITE
        statement.stream = None
        outcome = self._run_in_group(statement, options)
        if outcome is not None:
            return outcome
        self._attach_writer_in_turn(statement)
        outcome = self._settle(statement, self.run(statement, begins=False))
        if outcome.changed:
            self.writer.committed()
        return outcome

    def _run_in_group(self, statement: Statement, options: Any) -> Outcome | None:
        """Between a BEGIN and a COMMIT of its own, so that it can share the COMMIT with others.

        None for what may not be in a transaction, or came to nothing there through others: nobody
        has seen a result yet, so it can run once more, by itself. An executemany commits each row.
        """
        if statement.need is not Need.WRITE or statement.many or self.settings.group_size == 1:
            return None
        failed: Exception | None = None
        try:
            try:
                outcome = self._execute(statement, options)
            except sqlite3.IntegrityError as error:
                if self.failure is not None:
                    raise
                failed = error  # OR FAIL keeps the rows that came before
            self.commit()
        except (errors.ConflictError, errors.GroupAborted):
            self.rollback()
            self._take_options(options)
            return None
        except Exception:
            self.rollback()
            raise
        if failed is not None:
            raise failed
        return outcome


def _nothing_sent() -> Outcome:
    """What comes back for a statement that is not sent yet.

    It takes a turn of the loop: SQLAlchemy refuses an execution that never awaits anything
    (https://sqlalche.me/e/20/xd1r).
    """
    await_only(asyncio.sleep(0))
    return Outcome()
